"""The public verbs: load a model, inspect its hidden states."""

import inspect as pyinspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from numbers import Real
from os import PathLike
from types import MappingProxyType
from typing import Protocol, TypedDict, Unpack, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.engine import default_memory_bytes
from patchscopes.errors import ModelRunError, OptionError, PatchscopesWarning, SelfCheckError
from patchscopes.given import several, several_sources, texts
from patchscopes.mappings import Mappings, Transfer
from patchscopes.models import LoadOptions, Model, check_tokenizer, load_by_name, wrap_in_memory
from patchscopes.numbers import plain, whole
from patchscopes.plan import Budget, Runner
from patchscopes.prompts import find_prompt
from patchscopes.reference import Reference
from patchscopes.resolve import Resolved, parse_layers, resolve
from patchscopes.resolve.layers import Layers
from patchscopes.results import Results
from patchscopes.run import Inspection, collector_paused
from patchscopes.selfcheck import check_model, require
from patchscopes.settings import Settings
from patchscopes.spec import Bos, Decoding, InspectionPrompt, Readout, ReadoutKind, Row, Source, Sweep
from patchscopes.store import run_folder
from patchscopes.trust import TrustedEngine, distrust

DEFAULT_CONTROLS = ("unpatched", "random-state")
BOS_CHOICES = ("auto", "always", "never")
RUNNERS: Mapping[str, Callable[[Transfer], Runner]] = MappingProxyType(
    {"engine": TrustedEngine, "reference": Reference}
)

# Beside these, sources may be a DataFrame or an open file (see `patchscopes.given`).
Sources = str | Source | Iterable[str | Source]
Prompts = str | InspectionPrompt | Sequence[str | InspectionPrompt]
Texts = str | Sequence[str]


def load(
    name_or_hf_model: str | PathLike[str] | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = "float32",
    device: str | None = "auto",
    adapter: str | PathLike[str] | None = None,
    variant: str | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Model:
    """Load a model, or take one that is in memory, and check that it obeys the semantics.

    Args:
        name_or_hf_model: a registry name ("smollm2-135m"; pulled at first use), a folder or .gguf file, a Hugging
            Face hub id, in this order; or a transformers model, which is taken as it is (fine-tuned, quantised,
            sharded, compiled, a PeftModel) with its dtype and device. An adapter's folder or hub id loads its base too.
        tokenizer: overrides the model's own; needed with a model in memory.
        revision: a branch, tag or commit of the hub.
        trust_remote_code: whether code that comes with a hub model may run. Never unless asked for.
        dtype: "float32", "bfloat16" or "float16"; None is the default. Results are exact in float32.
        device: "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda:1", "mps"; None is the default.
        adapter: a folder or hub id that peft has saved, such as a LoRA, to load into the model that is named.
        variant: a name for what is attached to the model (hooks, forwards, modules of your own), part of the identity
            of its cells; needed for a run directory where that holds something that cannot be hashed.
        notify: is told, in words, of slow steps such as a download.

    Raises:
        UnknownModelError, ModelFilesError, UnsupportedModelError, DeviceError, PullError: see `patchscopes.errors`.
        SelfCheckError: the model does not obey docs/semantics.md.
        OutOfMemoryError: it does not fit in memory.
    """
    check_tokenizer(tokenizer)
    if isinstance(name_or_hf_model, str | PathLike):
        adapter_name = None if adapter is None else os.fspath(adapter)
        options = LoadOptions(revision, trust_remote_code, dtype or "float32", device or "auto", adapter_name)
        model = load_by_name(
            os.fspath(name_or_hf_model),
            options,
            Settings.from_env(),
            tokenizer=tokenizer,
            notify=notify,
            prove=_prove,
        )
        return model.called(variant)
    if adapter is not None:
        raise OptionError(
            f"adapter={os.fspath(adapter)!r} goes with the name of a base; into a model in memory it goes by peft: "
            "load(peft.PeftModel.from_pretrained(model, ADAPTER), tokenizer=tokenizer)."
        )
    model = wrap_in_memory(name_or_hf_model, tokenizer)
    _prove(model)
    return model.called(variant)


def _prove(model: Model) -> None:
    """Raise SelfCheckError unless the model obeys the semantics; warn where it runs one row at a time."""
    try:
        slow = distrust(model)
    except ModelRunError as error:
        raise SelfCheckError(str(error)) from error.__cause__
    if slow is not None:
        warnings.warn(slow, PatchscopesWarning, stacklevel=4)
    require(check_model(model, thorough=False))


class InspectOptions(TypedDict, total=False):
    """Options. None stands for an option's default, and NumPy's whole numbers for Python's.

    prompt: the inspection prompt(s): a library name, or text with `{}` where the state is written.
    at: which token of a source: "last", "all", a position (−1 is the last), a phrase (its last token),
        "phrase#2", "re:…", "span:…" (a cell per token), "text:…".
    source_layers: ℓ, where states are read: "all" (0…n_layers), an int, range or sequence, or "0-12", "0-4,8".
    target_layers: ℓ*, where they are written: "same" pairs (ℓ, ℓ); anything else gives the product.
    readout: "text" generates; "next-token" reads the next token's distribution; "candidates" scores given answers. By
        default "candidates" where some are given, else "text".
    candidates: answers to score, a row each; each joins the prompt with one space. A source's own go before them.
    max_new_tokens: length of a text, in tokens.
    stop: strings that end a text and are cut off it.
    expect: accepted answers; rows then say whether the text matches.
    controls: which of unpatched, self, zero, random, random-state, shuffled, mean, text-only, phrase-only to run
        beside; () for none. `shuffled` and `mean` write states of the call's other sources (see `Source.item`, `kind`).
    draws: how many draws of `random`, `random-state` and `shuffled` per cell.
    runner: "engine" (fast) or "reference" (one cell at a time); they give the same tokens.
    placeholder: the word that stands at `{}`; one token.
    target_at: which token is overwritten in a prompt without `{}`, named as by `at`; text goes on from the prompt's
        end.
    source_mask, target_mask: a phrase of the sources, or of the prompts, that no later token can attend to; positions
        stay as they are.
    target_model: another model, whose run the states are written into; `model` is then the one they are read from.
    mapping: f, what states go through in between: a `patchscopes.mappings.Mappings` or the path of one that was saved.
    seed: of controls and samples.
    top_k: how many tokens `next-token` lists.
    n_samples, temperature: samples per cell; temperature 0 is greedy.
    bos: "auto" leaves the BOS token to the tokenizer; "always" and "never" override it.
    variant: as `load` has it, for this call: the name of what is attached to the model (of both, where there are two).
    memory_bytes: what the call may take beside the weights, half of what is free where None; no result depends on it.
    run: a directory that keeps rows as they finish; the same call again does only what remains.
    """

    prompt: Prompts | None
    at: str | int | None
    source_layers: Layers | None
    target_layers: Layers | None
    readout: ReadoutKind | None
    candidates: Texts | None
    max_new_tokens: int | None
    stop: Texts | None
    expect: Texts | None
    controls: Sequence[str] | None
    draws: int | None
    runner: str | None
    placeholder: str | None
    target_at: str | int | None
    source_mask: str | None
    target_mask: str | None
    target_model: Model | None
    mapping: Mappings | str | PathLike[str] | None
    seed: int | None
    top_k: int | None
    n_samples: int | None
    temperature: float | None
    bos: Bos | None
    variant: str | None
    memory_bytes: int | None
    run: str | PathLike[str] | None


def inspect(model: Model, sources: Sources, **options: Unpack[InspectOptions]) -> Results:
    """Read hidden states of `sources` (a text, a `Source`, or a sequence of either) in words, beside controls.

    Raises a SpecError for whatever is wrong with the request, before anything runs. One bad source among good ones is
    a failed row with its reason instead.
    """
    return prepare(model, sources, **options).results()


def stream(model: Model, sources: Sources, **options: Unpack[InspectOptions]) -> Iterator[Row]:
    """As `inspect`, but yields rows as they finish. What is wrong with the request raises before the first row."""
    inspection = prepare(model, sources, **options)
    return (row for _, row in inspection.rows())


class _Prepares(Protocol):
    """The signature of `prepare` for callers."""

    def __call__(self, model: Model, sources: Sources, **options: Unpack[InspectOptions]) -> Inspection: ...


def _plainly(verb: Callable[..., Inspection]) -> _Prepares:
    """Let None stand for an option's default, and whole numbers of other libraries for Python's."""

    @wraps(verb)
    def called(model: Model, sources: Sources, **options: Unpack[InspectOptions]) -> Inspection:
        return verb(model, sources, **{name: plain(value) for name, value in options.items() if value is not None})

    return called


@_plainly
def prepare(
    model: Model,
    sources: Sources,
    *,
    prompt: Prompts = "entity-description",
    at: str | int = "last",
    source_layers: Layers = "all",
    target_layers: Layers = "same",
    readout: ReadoutKind | None = None,
    candidates: str | Sequence[str] = (),
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    expect: str | Sequence[str] = (),
    controls: Sequence[str] = DEFAULT_CONTROLS,
    draws: int = 1,
    runner: str = "engine",
    placeholder: str | None = None,
    target_at: str | int | None = None,
    source_mask: str | None = None,
    target_mask: str | None = None,
    target_model: Model | None = None,
    mapping: Mappings | str | PathLike[str] | None = None,
    seed: int = 0,
    top_k: int = 10,
    n_samples: int = 1,
    temperature: float = 0.0,
    bos: Bos = "auto",
    variant: str | None = None,
    memory_bytes: int | None = None,
    run: str | PathLike[str] | None = None,
) -> Inspection:
    """As `inspect`, but resolves and checks all of the request and runs nothing.

    The Inspection's `.results()` runs it, `.rows()` yields rows as they finish, `.plan` says what it takes.
    """
    transfer = _transfer(model, target_model, mapping, variant)
    answers = tuple(candidate.strip() for candidate in texts(candidates, "candidates"))
    _check_words(placeholder=placeholder, source_mask=source_mask, target_mask=target_mask)
    as_prompt = partial(find_prompt, placeholder=placeholder, at=target_at, mask=target_mask)
    given = tuple(_source(text, as_prompt) for text in several_sources(sources))
    readout = readout or ("candidates" if answers or any(source.candidates for source in given) else "text")
    _check_choices(readout=(readout, get_args(ReadoutKind)), runner=(runner, RUNNERS), bos=(bos, BOS_CHOICES))
    sweep = Sweep(
        sources=given,
        prompts=tuple(map(as_prompt, several(prompt, "prompt"))),
        source_layers=parse_layers(source_layers, model.n_layers),
        target_layers=_target_layers(target_layers, transfer.target),
        at=at,
        readout=Readout(readout, top_k),
        decoding=Decoding(max_new_tokens, texts(stop, "stop"), _number(temperature), seed, _eos_ids(transfer.target)),
        candidates=answers,
        n_samples=n_samples,
        controls=texts(controls, "controls"),
        draws=draws,
        expect=texts(expect, "expect"),
        bos=bos,
        seed=seed,
        mask=source_mask,
    )
    return _inspection(transfer, sweep, runner=runner, memory_bytes=memory_bytes, run=run)


def _inspection(
    transfer: Transfer, sweep: Sweep, *, runner: str, memory_bytes: int | None, run: str | PathLike[str] | None
) -> Inspection:
    """The sweep, resolved and planned, with the runner of that name."""
    sweep = transfer.named(sweep)
    folder = None if run is None else run_folder(run)
    resolved, budget = _resolved(transfer, sweep), _budget(transfer.target, memory_bytes)
    inspection = Inspection(transfer, sweep, resolved, RUNNERS[runner], runner, budget, folder)
    for message in inspection.warnings:
        warnings.warn(message, PatchscopesWarning, stacklevel=5)
    if folder is None:
        with collector_paused():
            inspection.compile()
    return inspection


def _transfer(
    model: Model,
    target_model: Model | None,
    mapping: Mappings | str | PathLike[str] | None,
    variant: str | None,
) -> Transfer:
    """What is read, what it goes through, and what it is written into, as they are now."""
    if not isinstance(model, Model):
        raise OptionError(f"the first argument is a model from load(), not a {type(model).__name__}: {model!r}.")
    if not isinstance(target_model, Model | None):
        raise OptionError(
            f"target_model is a model from load(), not a {type(target_model).__name__}: {target_model!r}."
        )
    if isinstance(mapping, str | PathLike):
        mapping = Mappings.load(mapping)
    if not isinstance(mapping, Mappings | None):
        raise OptionError(
            f"mapping is what patchscopes.mappings.fit() gives, or the path of it, not a {type(mapping).__name__}."
        )
    transfer = Transfer(model, model if target_model is None else target_model, mapping).called(variant)
    transfer.current(content=False)  # its content is looked at when it runs
    return transfer


def _resolved(transfer: Transfer, sweep: Sweep) -> Resolved:
    """The sweep, resolved."""
    with collector_paused():
        return resolve(transfer, sweep)


def _target_layers(layers: Layers, target: Model) -> tuple[int, ...] | None:
    """ℓ* as a Sweep has them: None for the same as ℓ."""
    return None if isinstance(layers, str) and layers == "same" else parse_layers(layers, target.n_layers)


def _eos_ids(model: Model) -> tuple[int, ...]:
    return tuple(sorted(model.eos_ids))


def _number(value: object) -> float:
    """A temperature as a plain float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError(f"temperature is {value!r}; it must be a number, 0 (greedy) or more.")
    return float(value)


def _budget(model: Model, memory_bytes: int | None) -> Budget:
    n_bytes = default_memory_bytes(model.device) if memory_bytes is None else whole(memory_bytes)
    if n_bytes is None or n_bytes <= 0:
        raise OptionError(
            f"memory_bytes is {memory_bytes!r}; it must be a whole number above 0, or None for half of what is free."
        )
    return Budget(n_bytes)


def _source(value: str | Source, as_prompt: Callable[[str | InspectionPrompt], InspectionPrompt]) -> Source:
    if isinstance(value, Source) and isinstance(value.text, str):
        for name, word in (("item", value.item), ("kind", value.kind), ("mask", value.mask)):
            if not isinstance(word, str | None):
                raise OptionError(f"the {name} of a source is a text or None, not a {type(word).__name__}: {word!r}.")
        candidates = tuple(candidate.strip() for candidate in texts(value.candidates, "a source's candidates"))
        if not isinstance(value.prompt, str | InspectionPrompt | None):
            raise OptionError(
                "the prompt of a source is a text, an InspectionPrompt or None, not a "
                f"{type(value.prompt).__name__}: {value.prompt!r}."
            )
        prompt = None if value.prompt is None else as_prompt(value.prompt)
        expect = texts(value.expect, "a source's expect")
        split, at = _pieces(value.split), plain(value.at)
        return replace(value, at=at, expect=expect, candidates=candidates, split=split, prompt=prompt)
    if not isinstance(value, str):
        raise OptionError(f"a source is a text or a Source, not a {type(value).__name__}: {value!r}.")
    return Source(str(value))


def _pieces(split: object) -> tuple[str, ...]:
    if split is None:
        return ()
    if not isinstance(split, Sequence) or isinstance(split, str):
        raise OptionError(f"the split of a source is a sequence of its pieces, not {split!r}.")
    return texts(split, "a source's split")


def _check_words(**options: object) -> None:
    for option, value in options.items():
        if not isinstance(value, str | None):
            raise OptionError(f"{option} is {value!r}; it must be a text, or None.")


def _check_choices(**options: tuple[str, Iterable[str]]) -> None:
    for option, (value, choices) in options.items():
        if value not in tuple(choices):  # a list, which no mapping takes as a key, is told as well
            raise OptionError(f"{option} is {value!r}; it must be one of {', '.join(choices)}.")


def _show_options(verb: Callable[..., object]) -> None:
    """Give `verb` the signature of `prepare` and the list of options, for help() and editors."""
    own, full = pyinspect.signature(verb), pyinspect.signature(prepare)
    verb.__signature__ = full.replace(return_annotation=own.return_annotation)  # type: ignore[attr-defined]
    verb.__doc__ = f"{verb.__doc__}\n    {InspectOptions.__doc__}"


_show_options(inspect)
_show_options(stream)
_show_options(prepare)
