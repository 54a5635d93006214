"""A request and its result → a Row; candidates beside the prompt without a write."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from patchscopes.analysis.matching import matches
from patchscopes.spec import Request, Result, Row


@dataclass(frozen=True, slots=True)
class Made:
    """What every row says of how it came about: the identity of its cell, the models, the seed."""

    cell: str | None
    model: str
    target_model: str
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a row says of its candidate (see `Row`)."""

    logprob: float
    logprob_per_token: float
    logprob_minus_unpatched: float | None
    rank: int
    token_ids: tuple[int, ...]


def row_of(request: Request, result: Result | None, made: Made, *, baseline: Result | None = None) -> Row:
    """The row of `request`; where it was not run, its status and reason say why."""
    if result is not None and result.failure is not None:
        request, result = replace(request, status="failed", reason=result.failure), None
    score = _score(request, result, baseline) if result is not None else None
    answer = request.candidate if score is not None else result.text if result is not None else None
    return Row(
        cell=made.cell,
        source=request.source,
        source_index=request.source_index,
        position=request.position,
        token=request.token,
        source_layer=request.source_layer,
        target_layer=request.target_layer,
        target_positions=request.target_positions,
        prompt=request.prompt,
        control=request.control,
        draw=request.draw,
        sample=request.sample,
        text=result.text if result else None,
        token_ids=score.token_ids if score else result.token_ids if result else None,
        finish_reason=result.finish_reason if result else None,
        top=result.top if result else None,
        entropy=result.entropy if result else None,
        candidate=request.candidate,
        logprob=score.logprob if score else None,
        logprob_per_token=score.logprob_per_token if score else None,
        logprob_minus_unpatched=score.logprob_minus_unpatched if score else None,
        rank=score.rank if score else None,
        answer_surprisal=-score.logprob if score else None,
        source_next=result.source_top.token if result and result.source_top else None,
        agrees=_agrees(result) if result else None,
        surprisal_under_source=result.surprisal_under_source if result else None,
        surprisal_under_patched=result.surprisal_under_patched if result else None,
        expected=matches(answer, request.expect) if answer is not None and request.expect else None,
        flags=request.flags,
        status=request.status,
        reason=request.reason,
        model=made.model,
        target_model=made.target_model,
        mapping=request.mapping,
        seed=made.seed,
    )


def _agrees(result: Result) -> bool | None:
    """Whether the patched run's likeliest token is the one of the source's own run (precision@1)."""
    if result.source_top is None or not result.top:
        return None
    return result.top[0].token_id == result.source_top.token_id


def _score(request: Request, result: Result, baseline: Result | None) -> Score | None:
    """The score of the request's candidate. Ties share the worse rank."""
    k = request.candidate_index
    if k is None or result.logprobs is None or request.cell is None:
        return None
    logprob, ids = result.logprobs[k], request.cell.candidates[k]
    without = baseline.logprobs[k] if baseline is not None and baseline.logprobs is not None else None
    return Score(
        logprob,
        logprob / len(ids),
        None if without is None else logprob - without,
        sum(other >= logprob for other in result.logprobs),
        ids,
    )


def with_baselines(results: Iterable[Result], baselines: Mapping[int, int]) -> Iterator[tuple[Result, Result | None]]:
    """Each result with that of its baseline, as soon as both are there; None where it has none."""
    known: dict[int, Result] = {}
    waiting: dict[int, list[Result]] = {}
    needed = set(baselines.values())
    for result in results:
        if result.index in needed:
            known[result.index] = result
            for other in waiting.pop(result.index, ()):
                yield other, result
        baseline = baselines.get(result.index)
        if baseline is None:
            yield result, None
        elif baseline in known:
            yield result, known[baseline]
        else:
            waiting.setdefault(baseline, []).append(result)
