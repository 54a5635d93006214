"""The resolution itself: a Sweep and a Model → Requests in the order of Results, and what to warn of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from patchscopes.errors import (
    ContextLengthError,
    OptionError,
    PatchscopesError,
    PositionError,
    SourceError,
)
from patchscopes.models import Model
from patchscopes.prompts import Target, resolve_positions, resolve_target, tokenize
from patchscopes.resolve.controls import CONTROLS
from patchscopes.resolve.grid import Grid, Point, Variant, check_context
from patchscopes.spec import Request, Source, Sweep


@dataclass(frozen=True, slots=True)
class Resolved:
    """The requests, in the order of Results: cells, failed sources in their places, then the controls as asked."""

    requests: tuple[Request, ...]
    warnings: tuple[str, ...]


def resolve(model: Model, sweep: Sweep) -> Resolved:
    """Resolve `sweep` on `model`.

    Raises a SpecError for whatever is wrong with the request itself, or where every source is; one bad source among
    good ones becomes a failed request with its reason.
    """
    check_options(model, sweep)
    targets = tuple(_target(model, sweep, index) for index in range(len(sweep.prompts)))
    by_source = [_points(model, sweep, index) for index in range(len(sweep.sources))]
    failures = {index: found for index, found in enumerate(by_source) if isinstance(found, PatchscopesError)}
    if len(failures) == len(by_source):
        raise _all_failed(list(failures.values()))
    points = tuple(point for found in by_source if isinstance(found, tuple) for point in found)
    grid = Grid.of(model, sweep, points, targets)
    for target in targets if sweep.candidates else ():
        longest = max(map(len, grid.answers(target, target.tokenized)))
        check_context(model, target.tokenized.ids, longest, f"inspection prompt {target.prompt.label!r}")
    requests: list[Request] = []
    for index, found in enumerate(by_source):
        if isinstance(found, tuple):
            requests.extend(request for point in found for request in _cells(grid, point))
        else:
            source = sweep.sources[index].text
            requests.append(Request(None, None, source=source, source_index=index, status="failed", reason=str(found)))
    for control in sweep.controls:
        requests.extend(CONTROLS[control](grid))
    if sweep.candidates:
        requests = [scored for request in requests for scored in grid.with_candidates(request)]
    return Resolved(tuple(requests), tuple(_warnings(grid, requests)))


def _cells(grid: Grid, point: Point) -> Iterator[Request]:
    states = {layer: point.state(layer) for layer in grid.sweep.source_layers}
    variants = [Variant(sample=sample) for sample in grid.samples]
    for layers in grid.sweep.layer_pairs():
        for target in grid.targets:
            vectors = (states[layers[0]],) * len(target.positions)
            for variant in variants:
                yield grid.request(target, vectors, layers, variant, point=point)


def _target(model: Model, sweep: Sweep, index: int) -> Target:
    target = resolve_target(model, sweep.prompts[index], bos=sweep.bos)
    new_tokens = sweep.decoding.max_new_tokens if sweep.readout.kind == "text" else 1
    check_context(model, target.tokenized.ids, new_tokens, f"inspection prompt {target.prompt.label!r}")
    return target


def _points(model: Model, sweep: Sweep, index: int) -> tuple[Point, ...] | PatchscopesError:
    """The points of one source, or why it has none."""
    source = sweep.sources[index]
    try:
        return tuple(_resolve_source(model, sweep, source, index))
    except (SourceError, PositionError, ContextLengthError) as error:
        return error


def _resolve_source(model: Model, sweep: Sweep, source: Source, index: int) -> Iterator[Point]:
    if not source.text.strip():
        raise SourceError(f"source {index} is empty; give a text with at least one token.")
    if not _encodable(source.text):
        raise SourceError(f"source {index} is not UTF-8: {source.text!r}; convert it.")
    tokenized = tokenize(model, source.text, bos=sweep.bos)
    check_context(model, tokenized.ids, 0, f"source {index}")
    at = sweep.at if source.at is None else source.at
    for position in resolve_positions(model, tokenized, at):
        yield Point(index, tokenized, position, source.expect or sweep.expect)


def _encodable(text: str) -> bool:
    """False for lone surrogates: bytes that were no UTF-8 on the way in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _all_failed(errors: list[PatchscopesError]) -> PatchscopesError:
    if len(errors) == 1:
        return errors[0]
    reasons = "\n".join(f"  {error}" for error in errors[:5])
    more = f"\n  … and {len(errors) - 5} more" if len(errors) > 5 else ""
    return SourceError(f"none of the {len(errors)} sources can be used:\n{reasons}{more}")


def check_options(model: Model, sweep: Sweep) -> None:
    """Raise an OptionError for a value that an option cannot take."""
    if not sweep.sources:
        raise SourceError("no source was given; give at least one text.")
    if not sweep.prompts:
        raise OptionError("no inspection prompt was given; give at least one.")
    decoding, readout = sweep.decoding, sweep.readout
    numbers = {"max_new_tokens": decoding.max_new_tokens, "n_samples": sweep.n_samples, "draws": sweep.draws}
    for name, value in {**numbers, "top_k": readout.top_k, "seed": sweep.seed}.items():
        if type(value) is not int:  # nor one of NumPy's: what is hashed must look the same everywhere
            raise OptionError(f"{name} is {value!r}; it must be a whole number, a Python int.")
    limits = (
        (decoding.max_new_tokens >= 1, f"max_new_tokens is {decoding.max_new_tokens}; it must be at least 1."),
        (
            0 <= decoding.temperature < math.inf,
            f"temperature is {decoding.temperature}; it must be 0 (greedy) or more, and finite.",
        ),
        (sweep.n_samples >= 1, f"n_samples is {sweep.n_samples}; it must be at least 1."),
        (sweep.draws >= 1, f"draws is {sweep.draws}; it must be at least 1."),
        (
            1 <= readout.top_k <= model.d_vocab,
            f"top_k is {readout.top_k}; it must be 1 to {model.d_vocab:,}, the size of the vocabulary.",
        ),
        (
            sweep.n_samples == 1 or (decoding.temperature > 0 and readout.kind == "text"),
            f"{sweep.n_samples} samples would all be the same; samples need readout='text' and a temperature above 0.",
        ),
        (
            bool(sweep.candidates) or readout.kind != "candidates",
            "readout 'candidates' needs candidates: give the answers to score, at least one.",
        ),
        (
            not sweep.candidates or readout.kind == "candidates",
            f"candidates are given, and readout {readout.kind!r} does not score them: leave the readout out.",
        ),
        (
            all(candidate.strip() for candidate in sweep.candidates),
            "a candidate is empty; give at least one character.",
        ),
        (
            len(set(sweep.candidates)) == len(sweep.candidates),
            f"candidate {_repeated(sweep.candidates)!r} is named twice; name each once.",
        ),
        (all(decoding.stop), "a stop string is empty; give at least one character."),
        (all(answer.strip() for source in sweep.sources for answer in source.expect), "an expected answer is empty."),
        (all(answer.strip() for answer in sweep.expect), "an expected answer is empty."),
        (len(set(sweep.controls)) == len(sweep.controls), "a control is named twice; name each once."),
    )
    for holds, message in limits:
        if not holds:
            raise OptionError(message)
    for control in sweep.controls:
        if control not in CONTROLS:
            raise OptionError(f"unknown control {control!r}; the controls are {', '.join(CONTROLS)}.")


def _repeated(values: tuple[str, ...]) -> str | None:
    return next((value for index, value in enumerate(values) if value in values[:index]), None)


def _warnings(grid: Grid, requests: list[Request]) -> Iterator[str]:
    sinks = {r.source: None for r in requests if r.control is None and "sink" in r.flags}
    if sinks:
        shown = ", ".join(repr(text) for text in list(sinks)[:3]) + (", …" if len(sinks) > 3 else "")
        yield (
            f"attention sink: {shown} is read at position 0 without a BOS, where the state is large and says little "
            "of its token; put the subject inside a sentence (flag: sink)."
        )
    if any("target-sink" in r.flags for r in requests):
        yield (
            "the placeholder stands at position 0 without a BOS, so the write replaces the attention sink of the whole "
            "prompt; begin the prompt with another word (flag: target-sink)."
        )
    if any("leaked" in r.flags and r.control is None for r in requests):
        yield (
            "an expected answer already stands in the inspection prompt or in the source up to the token: a match "
            "there shows nothing (flag: leaked)."
        )
    texts = [point.tokenized for point in grid.points] + [
        target.tokenized for target in grid.targets if not target.prompt.chat
    ]
    if grid.model.architecture.needs_bos and not all(text.has_bos for text in texts):
        yield f"{grid.model.id} needs a BOS and does not get one: without it, it is another model. Use bos='always'."
