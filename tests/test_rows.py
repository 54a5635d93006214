"""A request and its result → a row: what each holds, and candidates beside the prompt without a write."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.rows import Made, row_of, with_baselines
from patchscopes.spec import Cell, Decoding, Readout, Request, Result, Row, Site, State, TopToken, Write

MADE = Made("c0ffee", "tiny", "tiny", 7)
WRITE = Write(Site(1), (2,), (State((1, 2), 1, 0),))
ANSWERS = ((5,), (6, 7), (8, 9, 10))
CELL = Cell("sha256:m", "float32", (5, 6, 7), WRITE, Readout(), Decoding())
SCORED = replace(CELL, readout=Readout("candidates"), candidates=ANSWERS)
REQUEST = Request(
    "country-capital", CELL, "in Spain", 3, 1, " Spain", 4, 1, (2,), "random", 1, 2, ("Madrid",), ("sink",)
)
ASKED = replace(REQUEST, cell=SCORED, baseline=replace(SCORED, write=None))


def asked(k: int, candidate: str = "Madrid") -> Request:
    return replace(ASKED, candidate=candidate, candidate_index=k)


def scores(*logprobs: float, index: int = 0) -> Result:
    return Result(index, None, None, None, logprobs=logprobs)


def row(request: Request, result: Result | None, baseline: Result | None = None) -> Row:
    return row_of(request, result, MADE, baseline=baseline)


def test_a_text_is_a_row_of_its_request_and_its_result() -> None:
    top = (TopToken(" Madrid", 5, -0.5),)
    found = row(REQUEST, Result(9, " Madrid!", (5, 6), "length", top, 1.5))
    assert (found.source, found.source_index, found.position, found.token) == ("in Spain", 3, 1, " Spain")
    assert (found.source_layer, found.target_layer, found.target_positions) == (4, 1, (2,))
    assert (found.prompt, found.control, found.draw, found.sample) == ("country-capital", "random", 1, 2)
    assert (found.text, found.token_ids, found.finish_reason) == (" Madrid!", (5, 6), "length")
    assert (found.top, found.entropy, found.expected) == (top, 1.5, True)
    assert (found.cell, found.model, found.seed, found.flags) == ("c0ffee", "tiny", 7, ("sink",))
    scored = (found.candidate, found.logprob, found.logprob_per_token, found.rank, found.answer_surprisal)
    assert scored == (None,) * 5


@pytest.mark.parametrize("request_", [REQUEST, asked(1)], ids=["text", "candidates"])
def test_a_result_that_failed_is_a_failed_row_with_its_reason(request_: Request) -> None:
    found = row(request_, Result(0, None, None, None, failure="not finite"), scores(-1.0, -2.0, -3.0))
    assert (found.status, found.reason) == ("failed", "not finite")
    assert (found.text, found.token_ids, found.finish_reason, found.logprob, found.rank) == (None,) * 5
    assert found.expected is None
    assert found.candidate == request_.candidate


def test_a_request_that_was_not_run_is_a_row_with_its_status() -> None:
    found = row(replace(asked(0), status="inert", reason="it reaches nothing"), None)
    assert (found.status, found.reason, found.candidate) == ("inert", "it reaches nothing", "Madrid")
    assert (found.logprob, found.rank, found.expected) == (None, None, None)


def test_a_candidate_has_its_own_score_of_the_cells() -> None:
    result, baseline = scores(-1.0, -4.0, -3.0), scores(-1.5, -2.0, -9.0)
    found = [row(asked(k), result, baseline) for k in range(3)]
    assert [one.logprob for one in found] == [-1.0, -4.0, -3.0]
    assert [one.logprob_per_token for one in found] == [-1.0, -2.0, -1.0]
    assert [one.logprob_minus_unpatched for one in found] == [0.5, -2.0, 6.0]
    assert [one.answer_surprisal for one in found] == [1.0, 4.0, 3.0]
    assert [one.rank for one in found] == [1, 3, 2]
    assert [one.token_ids for one in found] == list(ANSWERS)
    assert {(one.text, one.finish_reason, one.top) for one in found} == {(None, None, None)}


def test_a_candidate_is_as_expected_where_it_is_the_answer() -> None:
    result = scores(-1.0, -4.0, -3.0)
    assert row(asked(0, "madrid"), result).expected is True
    assert row(asked(0, "Paris"), result).expected is False
    assert row(replace(asked(0), expect=()), result).expected is None


@pytest.mark.parametrize(
    ("logprobs", "ranks"),
    [
        ((-1.0, -1.0, -1.0), [3, 3, 3]),
        ((-1.0, -2.0, -1.0), [2, 3, 2]),
        ((-2.0, -1.0, -2.0), [3, 1, 3]),
        ((float("-inf"), -1.0, float("-inf")), [3, 1, 3]),
    ],
)
def test_ties_share_the_worse_rank(logprobs: tuple[float, ...], ranks: list[int]) -> None:
    assert [row(asked(k), scores(*logprobs)).rank for k in range(3)] == ranks


def test_without_a_baseline_there_is_no_difference() -> None:
    assert row(asked(0), scores(-1.0, -2.0, -3.0)).logprob_minus_unpatched is None
    failed = Result(5, None, None, None, failure="not finite")
    found = row(asked(0), scores(-1.0, -2.0, -3.0), failed)
    assert (found.logprob, found.logprob_minus_unpatched, found.status) == (-1.0, None, "ok")


# ------------------------------------------------------------------------------------------------------- with_baselines


def paired(order: list[int], baselines: dict[int, int]) -> list[tuple[int, int | None]]:
    results = [scores(-float(index), index=index) for index in order]
    return [(a.index, None if b is None else b.index) for a, b in with_baselines(iter(results), baselines)]


def test_results_wait_for_their_baseline_and_for_nothing_else() -> None:
    baselines = {1: 0, 2: 0, 4: 3}
    assert paired([0, 1, 2, 3, 4], baselines) == [(0, None), (1, 0), (2, 0), (3, None), (4, 3)]
    assert paired([1, 4, 2, 0, 3], baselines) == [(1, 0), (2, 0), (0, None), (4, 3), (3, None)]
    assert paired([1, 0], {}) == [(1, None), (0, None)]


def test_a_baseline_may_be_its_own() -> None:
    """The control `unpatched` is the cell that it is compared with: it adds nothing to itself."""
    assert paired([0, 1], {0: 0, 1: 0}) == [(0, 0), (1, 0)]
    assert paired([1, 0], {0: 0, 1: 0}) == [(1, 0), (0, 0)]


def test_nothing_is_held_back_longer_than_needed() -> None:
    taken: list[int] = []

    def results() -> object:
        for index in (1, 0, 2):
            taken.append(index)
            yield scores(-1.0, index=index)

    pairs = with_baselines(results(), {1: 0})  # type: ignore[arg-type]
    next(pairs)
    assert taken == [1, 0]


@given(order=st.permutations(range(6)), of=st.lists(st.integers(-1, 5), min_size=6, max_size=6))
def test_each_result_comes_once_with_its_baseline_in_any_order(order: list[int], of: list[int]) -> None:
    baselines = {index: other for index, other in enumerate(of) if other >= 0}
    found = paired(order, baselines)
    assert len(found) == 6
    assert dict(found) == {index: baselines.get(index) for index in range(6)}
