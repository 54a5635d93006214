"""The `patchscopes` command, and what its exit codes mean.

0 done · 2 something that the user can mend · 1 a fault of ours · 130 interrupted (143 by SIGTERM, 129 by SIGHUP)
"""

import errno
import gc
import sys
import traceback
import warnings

import click

from patchscopes import __version__
from patchscopes.cli.inspect import inspect_command
from patchscopes.cli.interrupts import EXIT_INTERRUPTED, Interrupts
from patchscopes.cli.lens import lens_command
from patchscopes.cli.look import demo_command, prompts_command, tokens_command
from patchscopes.cli.models import models_group
from patchscopes.cli.run import run_command
from patchscopes.cli.show import show_command
from patchscopes.cli.streams import abandon_output, prepare_streams
from patchscopes.cli.study import study_command
from patchscopes.errors import PatchscopesError, PatchscopesWarning

EXIT_OURS, EXIT_USER = 1, 2
# Where it is the user's to make room: a full disk, a quota, a file as large as the system allows.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="patchscopes")
def group() -> None:
    """Ask a language model, in words, what its hidden states hold.

    Start with: patchscopes demo, or patchscopes inspect "Diana, Princess of Wales".
    """


for command in (
    inspect_command,
    run_command,
    show_command,
    study_command,
    lens_command,
    models_group,
    prompts_command,
    tokens_command,
    demo_command,
):
    group.add_command(command)


def main() -> None:
    """Run the command line and exit with its code."""
    # Imports and loading make a million objects that stay, which the collector would walk again and again: a second.
    gc.disable()
    interrupts = Interrupts()
    interrupts.install()
    escapes = prepare_streams()
    code = interrupts.code(run(sys.argv[1:]))
    if escapes.n:
        click.echo(
            f"warning: standard output is {escapes.encoding}; {escapes.n:,} of the characters are not in it and are "
            "written as escapes. --out writes UTF-8, and PYTHONIOENCODING=utf-8 makes standard output UTF-8",
            err=True,
        )
    # An interrupt that passed through code run from a string (imports do that) leaves a mark in CPython, which would
    # then die of SIGINT at exit, whatever was done about it. Running a string that ends well takes the mark away.
    exec("")
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line on `arguments` and return the exit code; messages go to standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", PatchscopesWarning)
        warnings.showwarning = _show_warning
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    code = _code(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # what is left of an output that could not be written
        abandon_output()
        return code or _unwritten(error)
    return code


def _code(arguments: list[str]) -> int:
    try:
        # Not `group.main`, which makes an exit code of its own out of a reader that has gone.
        with group.make_context("patchscopes", arguments) as context:
            code = group.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except PatchscopesError as error:
        click.echo(f"error: {error}", err=True)
        return EXIT_USER
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except Exception as error:
        return _unforeseen(error)
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> int:
    """An output that cannot be written is the user's to mend; all else is a fault of ours, and shown whole."""
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno in NO_SPACE):
        return _unwritten(error)
    click.echo("".join(traceback.format_exception(error)), err=True)
    click.echo(f"This is a fault of patchscopes {__version__}; please report it.", err=True)
    return EXIT_OURS


def _unwritten(error: OSError) -> int:
    """Say why the output could not be written."""
    if isinstance(error, BrokenPipeError):  # the reader has gone (as in `… | head`), and has what it wanted
        return 0
    if error.errno in NO_SPACE:
        click.echo("error: no space left to write to; free some, or write elsewhere with --out.", err=True)
    else:
        click.echo(f"error: standard output cannot be written: {error.strerror}; write to a file with --out.", err=True)
    return EXIT_USER


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Our warnings as one line on standard error, without the place in the code that gave them; no others."""
    if issubclass(category, PatchscopesWarning):
        click.echo(f"warning: {message}", err=True)
