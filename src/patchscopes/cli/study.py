"""`patchscopes study`: a study by name, on a model, into a folder."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchscopes.cli.inspect import ADAPTER_HELP, VARIANT_HELP, load_named
from patchscopes.cli.interrupts import EXIT_INTERRUPTED
from patchscopes.cli.streams import is_closed

if TYPE_CHECKING:
    from patchscopes.run import Session
    from patchscopes.spec import Row


TARGET_HELP = (
    "cross-model: what states are written into, named as --model.  [default: a registry model that --model is not]"
)


@click.command("study")
@click.argument("name")
@click.option(
    "--model", "model_name", default="smollm2-135m", show_default=True, help="A registry name, path or hub id."
)
@click.option("--adapter", default=None, help=ADAPTER_HELP)
@click.option("--variant", default=None, help=VARIANT_HELP)
@click.option("--target-model", default=None, help=TARGET_HELP)
@click.option("--data", default=None, type=click.Path(), help="Your own data, in one of the forms of docs/data.md.")
@click.option("--quick", is_flag=True, help="Fewer items and layers: minutes on two cores.")
@click.option(
    "--out", default=None, type=click.Path(), help="Where to write; by default patchscopes-studies/NAME-MODEL[-DATA]."
)
@click.option("--seed", default=0, show_default=True, help="Of splits, draws and resampling.")
@click.option("--memory", default=None, metavar="SIZE", help="What it may take beside the weights, such as 8GiB.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:1, mps.")
def study_command(
    name: str,
    model_name: str,
    adapter: str | None,
    variant: str | None,
    target_model: str | None,
    data: str | None,
    quick: bool,
    out: str | None,
    seed: int,
    memory: str | None,
    dtype: str,
    device: str,
) -> int:
    """Run a study.

    \b
    entity-resolution     at which layer a name becomes the entity that it names
    tokenization          how the split of a name into tokens changes its resolution
    attribute-extraction  what attributes a state holds, beside a probe
    next-token            what comes next, read from one state: token identity beside lenses
    cross-model           what a model makes of another one's states, through maps fitted on text
    multi-hop             whether the first hop's state, written into the second, answers what text does not

    Writes summary.json, a page in words, a walk through one item, tables and figures; says what it costs before it
    starts. The same command again does only what remains.
    """  # noqa: D301 - click keeps the lines behind a backspace as they are
    from patchscopes.studies import find_study

    study = find_study(name)
    from patchscopes.settings import Settings
    from patchscopes.sizes import parse_bytes

    how = {"dtype": dtype, "device": device}
    model = load_named(model_name, {"adapter": adapter, "variant": variant, **how})
    if target_model is None and hasattr(study, "usual_target"):
        target_model = str(study.usual_target(model, Settings.from_env()))
        _tell(f"no --target-model is given: states go from {model_name} to {target_model}")
    models = [Path(given).name for given in (model_name, adapter, variant, target_model) if given]
    parts = [name, *models, "" if data is None else Path(data).stem, "quick" if quick else ""]
    folder = Path(out or Path("patchscopes-studies") / "-".join(filter(None, parts)))
    target = None if target_model is None else load_named(target_model, how)
    try:
        report = study.run(
            model,
            data=data,
            quick=quick,
            out=folder,
            seed=seed,
            memory_bytes=None if memory is None else parse_bytes(memory),
            watch=_watch,
            tell=_tell,
            target_model=target,
        )
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    _show(report.pages["page"])
    click.echo(f"all of it is in {folder}: page.md, walk.md, summary.json, tables, figures", err=True)
    return 0


def _show(page: str) -> None:
    """Print the page, which is in the folder as well, where there is a standard output."""
    if not is_closed(sys.stdout):
        click.echo(page)


def _tell(message: str) -> None:
    click.echo(message, err=True)


@contextmanager
def _watch(session: "Session") -> "Iterator[Callable[[Row], None]]":
    from patchscopes.cli.progress import announce, progress

    announce(session)
    with progress(session) as advance:
        yield advance
