"""`patchscopes lens`: what each layer would say, if the model ended there."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from patchscopes.cli.arguments import TextCommand
from patchscopes.cli.inspect import load_for, model_options
from patchscopes.cli.values import WORDS, chosen_format
from patchscopes.errors import OptionError, OutputError, SourceError

if TYPE_CHECKING:
    from patchscopes.mappings import Mappings
    from patchscopes.models import Model

FORMATS = ("table", "json", "csv")
BY_SUFFIX: Mapping[str, str] = MappingProxyType({".txt": "table", ".json": "json", ".csv": "csv"})
LENS_HELP = "tuned: a lens that was saved, or a published folder.  [default: trained once, then kept]"
TEXT_HELP = "tuned: a text file, or a folder of them, to train on.  [default: Python's own documentation]"


@click.command("lens", cls=TextCommand)
@click.argument("kind", metavar="[logit|tuned]")
@click.argument("text", type=WORDS)
@model_options
@click.option("--layers", default="all", show_default=True, help="Layers to read: all, 3, 0-12, 0-4,8.")
@click.option("--top-k", default=1, show_default=True, help="Tokens to list of each cell.")
@click.option("--lens", "path", default=None, type=click.Path(), help=LENS_HELP)
@click.option("--save", default=None, type=click.Path(), help="tuned: write the lens here as well.")
@click.option("--text", "prose", default=None, type=click.Path(), help=TEXT_HELP)
@click.option("--seed", default=None, type=int, help="tuned: of training.  [default: 0]")
@click.option("--bos", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--out", default=None, help="Write here instead of standard output.")
@click.option(
    "--format",
    "as_format",
    type=click.Choice(FORMATS),
    default=None,
    help="How the table is written.  [default: by the ending of --out, else table]",
)
def lens_command(kind: str, text: str, **options: Any) -> None:
    """Show what each layer would say after each token of TEXT, if the model ended there.

    logit reads a layer's states as they are; tuned through a map that was trained for the layer, at first use, for some
    minutes.
    """
    as_format = chosen_format(options.pop("as_format"), options["out"], BY_SUFFIX)
    lens_options = {name: options.pop(name) for name in ("path", "save", "prose", "seed")}
    _check(kind, lens_options)
    if not text.strip():
        raise SourceError("TEXT is empty; give at least one word.")
    layers, top_k, bos, out = (options.pop(name) for name in ("layers", "top_k", "bos", "out"))
    from patchscopes.cli.output import opened, write_provenance, write_results
    from patchscopes.lenses import lens_table
    from patchscopes.resolve.layers import parse_layers

    with opened(out) as file:
        model = load_for(options)
        wanted = parse_layers(layers, model.n_layers)
        lens_table(model, text, layers=(model.n_layers,), top_k=top_k, bos=bos)  # what is wrong shows before training
        lens = None if kind == "logit" else _lens(model, lens_options)
        table = lens_table(model, text, lens, layers=wanted, top_k=top_k, bos=bos)
        write_results(table, as_format, file, to_file=out is not None)
    if out is not None and as_format != "json":
        write_provenance(table, out)
    for caution in table.cautions:
        click.echo(f"warning: {caution}", err=True)


def _check(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be, before the model is loaded."""
    if kind not in ("logit", "tuned"):
        raise OptionError(
            f'there is no {kind!r} lens; there are logit and tuned, as in patchscopes lens logit "The Eiffel Tower is '
            'in".'
        )
    named = (("lens", "path"), ("save", "save"), ("text", "prose"), ("seed", "seed"))
    given = [f"--{name}" for name, key in named if options[key] is not None]
    if kind == "logit" and given:
        raise OptionError(
            f"the logit lens is not trained, so that {given[0]} means nothing; leave it out, or ask for tuned."
        )
    if options["save"] and not Path(options["save"]).resolve().parent.is_dir():
        raise OutputError(f"cannot write {options['save']}: there is no such folder; give a file in one that there is.")
    if options["path"] and options["prose"]:
        raise OptionError("--lens gives a lens and --text something to train another on; give one of them.")


def _lens(model: "Model", options: Mapping[str, Any]) -> "Mappings":
    """The lens of a file, or the one that is kept for this model, trained first where there is none."""
    from patchscopes.data import load_prose
    from patchscopes.lenses import TunedOptions, kept_lens, load_tuned_lens
    from patchscopes.settings import Settings

    if options["path"]:
        lens = load_tuned_lens(options["path"], model)
    else:
        texts, training = load_prose(options["prose"]), TunedOptions(seed=options["seed"] or 0)
        lens = kept_lens(model, texts, Settings.from_env(), training, notify=lambda said: click.echo(said, err=True))
    if options["save"]:
        lens.save(options["save"])
        click.echo(f"the lens is also in {options['save']}", err=True)
    return lens
