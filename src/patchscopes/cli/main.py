"""The `patchscopes` command, and what its exit codes mean.

0 done · 2 something that the user can mend · 1 a fault of ours · 130 interrupted
"""

import errno
import gc
import os
import signal
import sys
import traceback
import warnings

import click

from patchscopes import __version__
from patchscopes.cli.inspect import inspect_command
from patchscopes.cli.lens import lens_command
from patchscopes.cli.look import demo_command, prompts_command, tokens_command
from patchscopes.cli.models import models_group
from patchscopes.cli.run import run_command
from patchscopes.cli.show import show_command
from patchscopes.cli.study import study_command
from patchscopes.errors import PatchscopesError, PatchscopesWarning

EXIT_OURS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


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
    # A shell starts background jobs with SIGINT ignored; whoever sends one means it, and the document must be valid.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
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
    try:
        # Not `group.main`, which makes an exit code of its own out of a reader that has gone.
        with group.make_context("patchscopes", arguments) as context:
            code = group.invoke(context)
        sys.stdout.flush()
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
    except BrokenPipeError:
        # The reader has gone (as in `… | head`): what remains in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _unforeseen(error)
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> int:
    """A full disk is the user's to mend; all else is a fault of ours, and shown whole."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        click.echo("error: no space left to write to; free some, or write elsewhere with --out.", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER
    click.echo("".join(traceback.format_exception(error)), err=True)
    click.echo(f"This is a fault of patchscopes {__version__}; please report it.", err=True)
    return EXIT_OURS


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Our warnings as one line on standard error, without the place in the code that gave them; no others."""
    if issubclass(category, PatchscopesWarning):
        click.echo(f"warning: {message}", err=True)
