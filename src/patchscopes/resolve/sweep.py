"""The resolution itself: a Sweep and a Model → Requests in the order of Results, and what to warn of."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from patchscopes.errors import (
    ContextLengthError,
    OptionError,
    PatchscopesError,
    PlaceholderError,
    PositionError,
    PromptError,
    SourceError,
    VocabularyError,
)
from patchscopes.mappings import Transfer
from patchscopes.models import Model
from patchscopes.prompts import Target, resolve_marked, resolve_mask, resolve_target, tokenize, tokenize_pieces
from patchscopes.prompts.tokens import bos_caution, check_rows
from patchscopes.resolve.controls import CONTROLS
from patchscopes.resolve.grid import Grid, Point, Variant, with_candidates
from patchscopes.resolve.options import check_options
from patchscopes.resolve.transfer import check_transfer
from patchscopes.spec import InspectionPrompt, Request, Source, Sweep

MAX_SHOWN = 3  # of warnings that are alike


@dataclass(frozen=True, slots=True)
class Resolved:
    """The requests, in the order of Results: cells, failed sources in their places, then the controls as asked."""

    requests: tuple[Request, ...]
    warnings: tuple[str, ...]


def resolve(model: Model | Transfer, sweep: Sweep) -> Resolved:
    """Resolve `sweep` on `model`, or from one model to another.

    Raises a SpecError for whatever is wrong with the request itself, or where every source is; one bad source among
    good ones becomes a failed request with its reason.
    """
    transfer = Transfer.of(model)
    check_options(transfer.target, sweep)
    check_transfer(transfer, sweep)
    of_all = sweep.prompts if any(source.prompt is None for source in sweep.sources) else ()
    prompts = {prompt: _target(transfer.target, sweep, prompt) for prompt in of_all}
    by_source = [_points(transfer, sweep, index, prompts) for index in range(len(sweep.sources))]
    _check_labels(prompts)
    failures = {index: found for index, found in enumerate(by_source) if isinstance(found, PatchscopesError)}
    if len(failures) == len(by_source):
        raise _all_failed(list(failures.values()))
    points = tuple(point for found in by_source if isinstance(found, tuple) for point in found)
    grid = Grid.of(transfer, sweep, points, prompts)
    _check_candidates(grid)
    requests: list[Request] = []
    for index, found in enumerate(by_source):
        if isinstance(found, tuple):
            requests.extend(request for point in found for request in _cells(grid, point))
        else:
            requests.append(_failed(sweep, index, str(found)))
    for control in sweep.controls:
        requests.extend(CONTROLS[control](grid))
    if sweep.readout.kind == "candidates":
        requests = [scored for request in requests for scored in with_candidates(request)]
    return Resolved(tuple(requests), tuple(_warnings(grid, requests)))


def _check_labels(prompts: Iterable[InspectionPrompt]) -> None:
    """Raise where rows could not tell two inspection prompts apart."""
    named: dict[str, InspectionPrompt] = {}
    for prompt in prompts:
        other = named.setdefault(prompt.label, prompt)
        if other != prompt:
            ours, theirs = asdict(prompt), asdict(other)
            apart = "; ".join(f"{key}: {theirs[key]!r} and {ours[key]!r}" for key in ours if ours[key] != theirs[key])
            raise OptionError(
                f"two inspection prompts are both called {prompt.label!r}, and differ ({apart}): rows could not tell "
                "them apart; give each a name of its own, InspectionPrompt(…, name=…)."
            )


def _failed(sweep: Sweep, index: int, reason: str) -> Request:
    """The request of a source that cannot be read."""
    source = sweep.sources[index]
    candidates = source.candidates or sweep.candidates
    return Request(
        None, None, source=source.text, source_index=index, status="failed", reason=reason, candidates=candidates
    )


def _check_candidates(grid: Grid) -> None:
    """Raise where a candidate does not continue an inspection prompt, or is too long behind it."""
    for target in grid.targets:
        for candidates in filter(None, grid.candidate_sets(target)):
            longest = max(map(len, grid.answers(target, target.tokenized, candidates)))
            what = f"inspection prompt {target.prompt.label!r}"
            grid.model.check_length(len(target.tokenized.ids), longest, what, masked=bool(target.masked))


def _cells(grid: Grid, point: Point) -> Iterator[Request]:
    states = {layer: point.state(layer) for layer in grid.sweep.source_layers}
    variants = [Variant(sample=sample) for sample in grid.samples]
    targets = grid.targets_of(point)
    for layers in grid.sweep.layer_pairs():
        for target in targets:
            vectors = (states[layers[0]],) * len(target.positions)
            for variant in variants:
                yield grid.request(target, vectors, layers, variant, point=point)


def _target(model: Model, sweep: Sweep, prompt: InspectionPrompt) -> Target:
    target = resolve_target(model, prompt, bos=sweep.bos)
    check_rows(model, target.tokenized)
    new_tokens = sweep.decoding.max_new_tokens if sweep.readout.kind == "text" else 1
    if target.masked:
        model.check_masks()
    what = f"inspection prompt {target.prompt.label!r}"
    model.check_length(len(target.tokenized.ids), new_tokens, what, masked=bool(target.masked))
    return target


def _points(
    transfer: Transfer, sweep: Sweep, index: int, prompts: dict[InspectionPrompt, Target]
) -> tuple[Point, ...] | PatchscopesError:
    """The points of one source, or why it has none; an inspection prompt of its own goes into `prompts`."""
    source = sweep.sources[index]
    try:
        points = tuple(_resolve_source(transfer.source, sweep, source, index))
        if isinstance(source.prompt, InspectionPrompt) and source.prompt not in prompts:
            prompts[source.prompt] = _target(transfer.target, sweep, source.prompt)
    except (
        SourceError, PositionError, ContextLengthError, PlaceholderError, PromptError, VocabularyError,
    ) as error:  # fmt: skip
        return error
    return points


def _resolve_source(model: Model, sweep: Sweep, source: Source, index: int) -> Iterator[Point]:
    if not source.text.strip():
        raise SourceError(f"source {index} is empty; give a text with at least one token.")
    if not _encodable(source.text):
        raise SourceError(f"source {index} is not UTF-8: {source.text!r}; convert it.")
    if source.split:
        _check_split(source, index)
        tokenized = tokenize_pieces(model, source.split, bos=sweep.bos)
    else:
        tokenized = tokenize(model, source.text, bos=sweep.bos)
    check_rows(model, tokenized)
    model.check_length(len(tokenized.ids), 0, f"source {index}")
    at = sweep.at if source.at is None else source.at
    marked = resolve_marked(model, tokenized, at)
    mask = sweep.mask if source.mask is None else source.mask
    masked = () if mask is None else resolve_mask(model, tokenized, mask)
    for position in marked.positions:
        if position in masked:
            raise PositionError(
                f"source {index} is read at position {position}, which {mask!r} masks; read another, or mask another "
                f"phrase.\n{tokenized.table(masked)}"
            )
        yield Point(
            index,
            tokenized,
            position,
            source.expect or sweep.expect,
            phrase=marked.span,
            candidates=source.candidates or sweep.candidates,
            item=source.item,
            kind=source.kind,
            masked=tuple(hidden for hidden in masked if hidden < position),
        )


def _check_split(source: Source, index: int) -> None:
    if not all(source.split):
        raise SourceError(f"source {index}: a piece of its split is empty: {source.split!r}; leave it out.")
    if "".join(source.split) != source.text:
        raise SourceError(
            f"source {index}: the pieces of its split make {''.join(source.split)!r}, not its text, {source.text!r}; "
            "they must, spaces included."
        )


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


def _warnings(grid: Grid, requests: list[Request]) -> Iterator[str]:
    yield from _two_bos(grid, requests)
    sinks = {r.source: None for r in requests if r.control is None and "sink" in r.flags}
    if sinks:
        shown = ", ".join(repr(text) for text in list(sinks)[:3]) + (", …" if len(sinks) > 3 else "")
        yield (
            f"attention sink: {shown} is read at position 0 without a BOS, where the state is large and says little "
            "of its token; put the subject inside a sentence (flag: sink)."
        )
    if any("target-sink" in r.flags for r in requests):
        yield (
            "the placeholder stands at position 0 without a BOS, or all before it is masked, so that the write "
            "replaces an attention sink; begin the prompt with another word (flag: target-sink)."
        )
    if any("leaked" in r.flags and r.control is None for r in requests):
        yield (
            "an expected answer already stands in the inspection prompt or in the source up to the token: a match "
            "there shows nothing (flag: leaked)."
        )
    texts = [(grid.transfer.source, point.tokenized) for point in grid.points] + [
        (grid.model, target.tokenized) for target in grid.targets if not target.prompt.chat
    ]
    without = {model.id: None for model, text in texts if model.architecture.needs_bos and not text.has_bos}
    for name in without:
        yield f"{name} needs a BOS and does not get one: without it, it is another model. Use bos='always'."


def _two_bos(grid: Grid, requests: list[Request]) -> Iterator[str]:
    """Warn of a second BOS: in sources, in inspection prompts, and in prompts that a source's text stands in."""
    source, target = grid.transfer.source, grid.model
    texts = {point.source_index: point.tokenized for point in grid.points}
    cautions = [
        bos_caution(source, text.ids, text.text, f"source {index} ({text.text[:60]!r})")
        for index, text in texts.items()
    ]
    for one in grid.targets:
        written = one.prompt.text + one.prompt.reply if one.prompt.chat else one.tokenized.text
        cautions.append(bos_caution(target, one.tokenized.ids, written, f"inspection prompt {one.prompt.label!r}"))
    if not any(cautions):
        cautions += [
            bos_caution(
                target, request.cell.target_ids, str(request.source), f"{request.control} of {request.source!r}"
            )
            for request in requests
            if request.control in ("text-only", "phrase-only") and request.cell is not None
        ]
    found = list(dict.fromkeys(filter(None, cautions)))
    yield from found[:MAX_SHOWN]
    if len(found) > MAX_SHOWN:
        yield f"two BOS: so have {len(found) - MAX_SHOWN:,} more texts."
