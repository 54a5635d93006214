"""`patchscopes inspect`: sources in, rows out."""

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from patchscopes.cli.arguments import TextCommand
from patchscopes.cli.interrupts import EXIT_INTERRUPTED, uninterrupted
from patchscopes.cli.streams import is_closed
from patchscopes.cli.values import SELF_CONTAINED, WORDS, chosen_format, output_options, read_values
from patchscopes.sources import KEYS, read_sources
from patchscopes.spec import ReadoutKind, Row

if TYPE_CHECKING:
    from patchscopes.cli.output import Sink
    from patchscopes.models import Model
    from patchscopes.run import Inspection

DEFAULT_MODEL = "smollm2-135m"
CONTROLS_HELP = (
    "Controls beside the cells: unpatched, self, zero, random, random-state, shuffled, mean, text-only, "
    "phrase-only; or none alone."
)
SOURCES_HELP = f"A file of sources, or - : lines, or JSON with {', '.join(KEYS)}."
TARGET_AT_HELP = "The token to overwrite in a prompt without {}, named as by --at; text goes on from the prompt's end."
MASK_HELP = "A phrase of the {} that no later token can attend to."
MAPPING_HELP = "What states go through: a file that patchscopes.mappings saved."
CANDIDATES_HELP = "Answers to score instead of a text: a file of one a line, or a,b,c."
ADAPTER_HELP = "A folder or hub id that peft has saved (LoRA and the like), to load into the model."
VARIANT_HELP = "A name for hooks, forwards or modules of your own on the model; it becomes part of its cells' identity."
MEMORY_HELP = "What it may take beside the weights, such as 8GiB.  [default: half of what is free]"


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which model, and how to load it."""
    for option in (
        click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Registry name, path or hub id."),
        click.option("--adapter", default=None, help=ADAPTER_HELP),
        click.option("--revision", default=None, help="Branch, tag or commit on the hub."),
        click.option("--trust-remote-code", is_flag=True, help="Let code that comes with a hub model run."),
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
    ):
        command = option(command)
    return command


@click.command("inspect", cls=TextCommand)
@click.argument("source", nargs=-1, type=WORDS)
@click.option("--sources", "sources_file", default=None, help=SOURCES_HELP)
@model_options
@click.option(
    "--prompt",
    multiple=True,
    type=WORDS,
    default=("entity-description",),
    show_default=True,
    help='Library name, or text with "{}". Repeatable.',
)
@click.option("--placeholder", default=None, type=WORDS, help="The one-token word that stands at {}.")
@click.option(
    "--at",
    default="last",
    show_default=True,
    type=WORDS,
    help="last, all, a position, a phrase, phrase#2, re:…, span:…, text:….",
)
@click.option("--target-at", default=None, type=WORDS, help=TARGET_AT_HELP)
@click.option("--source-mask", default=None, type=WORDS, metavar="PHRASE", help=MASK_HELP.format("sources"))
@click.option("--target-mask", default=None, type=WORDS, metavar="PHRASE", help=MASK_HELP.format("prompts"))
@click.option("--target-model", default=None, help="Another model, named as --model, that states are written into.")
@click.option("--mapping", default=None, type=click.Path(), help=MAPPING_HELP)
@click.option("--source-layers", default="all", show_default=True, help="Layers to read: all, 3, 0-12, 0-4,8.")
@click.option(
    "--target-layers", default="same", show_default=True, help="Layers to write: same, or layers for the product."
)
@click.option(
    "--readout",
    type=click.Choice(get_args(ReadoutKind)),
    default=None,
    help="What is read.  [default: text, or candidates where some are given]",
)
@click.option("--candidates", default=None, metavar="FILE|A,B,C", help=CANDIDATES_HELP)
@click.option("--max-new-tokens", default=20, show_default=True, help="Length of a text.")
@click.option(
    "--stop",
    multiple=True,
    type=WORDS,
    help=r"A string that ends a text (\n and \t are line break and tab). Repeatable.",
)
@click.option(
    "--expect", multiple=True, type=WORDS, help="An accepted answer: rows say whether the text matches. Repeatable."
)
@click.option("--controls", default="unpatched,random-state", show_default=True, help=CONTROLS_HELP)
@click.option("--draws", default=1, show_default=True, help="Draws of random, random-state and shuffled per cell.")
@click.option("--top-k", default=10, show_default=True, help="Tokens that next-token lists.")
@click.option("--runner", type=click.Choice(["engine", "reference"]), default="engine", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of controls and samples.")
@click.option("--n-samples", default=1, show_default=True, help="Samples per cell.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--bos",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="BOS token before raw text.",
)
@click.option("--explain", is_flag=True, help="Say what it takes, and how long here, and run nothing.")
@click.option("--variant", default=None, help=VARIANT_HELP)
@click.option("--memory", default=None, metavar="SIZE", help=MEMORY_HELP)
@output_options
@click.option(
    "--run", default=None, help="A directory that keeps rows as they finish; the same again does what remains."
)
def inspect_command(**options: Any) -> int:
    """Read the hidden states of SOURCE… in words, layer by layer, beside controls."""
    sources = read_sources(options.pop("source"), options.pop("sources_file"))
    out, explain = options.pop("out"), options.pop("explain")
    as_format = chosen_format(options.pop("as_format"), out)
    options.update(read_values(options.pop("controls"), options.pop("candidates"), options.pop("memory")))
    from patchscopes.cli.output import opened

    if options["run"] is not None:
        from patchscopes.store import check_folder

        check_folder(options["run"])
        if out is None and is_closed(sys.stdout):  # the rows are kept all the same
            out = os.devnull
    if explain:
        explain_work(_prepare(sources, options))
        return 0
    with opened(out) as file:
        collector = _Collector(as_format, file)
        name = options["model"]
        try:
            inspection = _prepare(sources, options)
        except KeyboardInterrupt:
            collector.nothing_ran(name)
            click.echo("interrupted before anything ran", err=True)
            return EXIT_INTERRUPTED
        interrupted = collector.run(inspection)
        collector.finish(inspection, out)
    return EXIT_INTERRUPTED if interrupted else 0


def load_for(options: dict[str, Any]) -> Any:
    """Take the model options out of `options` and load what they name; slow steps are told on standard error."""
    how = {key: options.pop(key) for key in ("adapter", "revision", "trust_remote_code", "dtype", "device")}
    model = load_named(options.pop("model"), how)
    if options.get("target_model") is not None:
        options["target_model"] = load_target(options["target_model"], how)
    gc.freeze()  # what is there now stays: no later search for cycles needs to walk it
    gc.enable()
    return model


def load_named(name: str, how: Mapping[str, Any]) -> Any:
    """Load the model of that name with the options `how`; slow steps are told on standard error."""
    import patchscopes.api

    return patchscopes.api.load(name, notify=lambda message: click.echo(message, err=True), **how)


def load_target(name: str, how: Mapping[str, Any]) -> Any:
    """As `load_named`, another model beside the one that `how` is of: adapter and revision are of that one alone."""
    return load_named(name, {key: value for key, value in how.items() if key not in ("adapter", "revision")})


def _prepare(sources: list[Any], options: dict[str, Any]) -> "Inspection":
    import patchscopes.api

    options["stop"] = tuple(stop.replace("\\n", "\n").replace("\\t", "\t") for stop in options["stop"])
    return patchscopes.api.prepare(load_for(options), sources, **options)


def explain_work(inspection: "Inspection") -> None:
    """Say what an inspection takes; and that it takes the slow way, where it does."""
    click.echo(str(inspection.explain()))
    if slow := slow_way(inspection.target):
        click.echo(slow)


def slow_way(model: "Model") -> str | None:
    """Say why this machine runs `model` without the package's own kernels, where they would be for it."""
    from patchscopes.kernels import native

    reason = native().reason
    if reason is None or model.device.type != "cpu" or model.dtype_name != "float32":
        return None
    return f"this is the slow way, without the package's kernels: {reason}"


class _Collector:
    """Takes rows as they finish, shows progress on standard error, and writes what there is at the end."""

    def __init__(self, as_format: str, file: "Sink") -> None:
        self._format, self._file = as_format, file
        self._rows: dict[int, Row] = {}
        self._start = time.monotonic()

    def run(self, inspection: "Inspection") -> bool:
        """Run to the end or to Ctrl-C; True where it was interrupted."""
        from patchscopes.cli.progress import announce, progress

        try:
            with inspection.session() as session:
                announce(session)
                for index, row in session.kept().items():
                    self._take(index, row)
                with progress(session) as advance:
                    for index, row in session.rows():
                        self._take(index, row)
                        advance(row)
        except KeyboardInterrupt:
            return True
        return False

    def _take(self, index: int, row: Row) -> None:
        from patchscopes.cli.output import write_row

        self._rows[index] = row
        if self._format == "jsonl":
            write_row(row, self._file)

    def finish(self, inspection: "Inspection", out: str | None) -> None:
        from patchscopes.cli.output import report_counts, write_provenance, write_results, write_row

        # A second Ctrl-C must not spoil the document that the first one asked for.
        with uninterrupted():
            results = inspection.results(self._rows)
            if self._format == "jsonl":
                for index, row in enumerate(results):
                    if index not in self._rows:
                        write_row(row, self._file)
            else:
                write_results(results, self._format, self._file, to_file=out is not None)
            if out is not None and self._format not in SELF_CONTAINED:
                write_provenance(results, out)
            report_counts(results, time.monotonic() - self._start)

    def nothing_ran(self, model: str) -> None:
        """A valid document for a run that was interrupted before it began."""
        from patchscopes.cli.output import write_results
        from patchscopes.results import Results

        results: Results = Results([], model={"id": model}, spec={}, complete=False)
        if self._format != "jsonl":
            write_results(results, self._format, self._file, to_file=False)
