"""The plan, with no model at hand: each cell once, nothing over budget, what is shared is shared."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.errors import OptionError
from patchscopes.plan import (
    MAX_ROWS,
    MAX_TOKENS,
    Budget,
    Group,
    ModelShape,
    Plan,
    Speed,
    Wave,
    compile_plan,
    layer_of,
    suffix_of,
)
from patchscopes.plan.compile import MIN_SHARING
from patchscopes.spec import Cell, Decoding, Ids, Mean, Neutral, Noise, Readout, Site, State, Vector, Write, Zero

SHAPE = ModelShape(n_layers=4, d_model=8, d_vocab=100, kv_bytes_per_token=64, n_matrix_parameters=1000, itemsize=4)
AMPLE = Budget(2**30)
KIB = 1024


def cell(
    ids: Ids,
    positions: tuple[int, ...] = (),
    vector: Vector | None = None,
    *,
    kind: str = "text",
    new: int = 5,
    layer: int = 1,
    candidates: tuple[Ids, ...] = (),
) -> Cell:
    """A cell on `ids`; it writes `vector` (zero unless given) at `positions`, or nothing where there are none."""
    write = Write(Site(layer), positions, (vector or Zero(),) * len(positions)) if positions else None
    return Cell("m", "float32", ids, write, Readout(kind), Decoding(new), candidates=candidates)  # type: ignore[arg-type]


ids_of = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)
# Plain numbers, of which `make` makes cells: the check of the nouns' types draws random numbers of its own.
parts = st.fixed_dictionaries(
    {
        "ids": ids_of,
        "positions": st.sets(st.integers(0, 7), max_size=2),
        "source": ids_of,
        "layer": st.integers(0, 4),
        "target_layer": st.integers(0, 4),
        "vector": st.integers(0, 4),
        "kind": st.sampled_from(["text", "next-token", "candidates"]),
        "new": st.integers(1, 6),
    }
)


MEAN = Mean((State((9, 9), 1, 2), State((9, 9), 0, 2), State((8,), 0, 1)))


def make(drawn: dict[str, Any]) -> Cell:
    ids, source = drawn["ids"], drawn["source"]
    state = State(source, len(source) // 2, drawn["layer"])
    vector = (state, Zero(), Noise(state, 0, 0), Neutral(State((9, 9), 1, 2), state), MEAN)[drawn["vector"]]
    positions = tuple(sorted({position % len(ids) for position in drawn["positions"]}))
    answers = ((1,) * drawn["new"], (2,)) if drawn["kind"] == "candidates" else ()
    return cell(
        ids,
        positions,
        vector,
        kind=drawn["kind"],
        new=drawn["new"],
        layer=drawn["target_layer"],
        candidates=answers,
    )


def groups(plan: Plan) -> list[Group]:
    return [group for wave in plan.waves for group in wave.groups]


def members(group: Group, cells: list[Cell]) -> list[Cell]:
    return [cells[index] for index in group.cells]


def own_kv_bytes(group: Group) -> int:
    return group.n_rows * SHAPE.kv_bytes_per_token * group.capacity


def kept_bytes(wave: Wave) -> int:
    """Source states, prompts' keys and values (as they are and as they are shared), and their states at ℓ*."""
    states = sum(len(source.states) for batch in wave.source_batches for source in batch)
    suffixes = sum((len(prompt.ids) - prompt.start) * len(prompt.layers) for prompt in wave.prompts)
    tokens = sum(len(prompt.ids) for prompt in wave.prompts)
    return 4 * SHAPE.d_model * (states + suffixes) + 2 * SHAPE.kv_bytes_per_token * tokens


many_cells = st.lists(parts, max_size=24)


@settings(deadline=None)
@given(drawn=many_cells, max_rows=st.integers(1, 5), kib=st.integers(600, 800), sharing=st.booleans())
def test_any_plan_has_each_cell_once_with_room_for_all_its_tokens(
    drawn: list[Any], max_rows: int, kib: int, sharing: bool
) -> None:
    cells = [make(one) for one in drawn]
    plan = compile_plan(cells, replace(SHAPE, shares_prefix=sharing), Budget(kib * KIB, max_rows))
    assert Counter(index for group in groups(plan) for index in group.cells) == Counter(range(len(cells)))
    assert plan.cells == tuple(cells)
    for group in groups(plan):
        assert sharing or not group.prefix
        assert 1 <= group.n_started <= group.n_rows <= min(max_rows, len(group.cells))
        assert len({one.readout.kind for one in members(group, cells)}) == 1
        for one in members(group, cells):
            assert one.target_ids[: len(group.prefix)] == group.prefix
            assert len(group.prefix) < len(one.target_ids), "the last token is run: its logits are read"
            assert one.write is None or len(group.prefix) <= min(one.write.positions), "what is written is run"
            later = max(map(len, one.candidates), default=one.new_tokens) - 1
            assert len(one.target_ids) - len(group.prefix) + later <= group.capacity


@settings(deadline=None)
@given(drawn=many_cells, kib=st.integers(600, 800))
def test_cells_start_in_runs_of_one_suffix_those_without_a_write_first_then_by_layer(
    drawn: list[Any], kib: int
) -> None:
    """As `hooks.enter` needs it: rows without a write in front, the others by the layer that they enter at."""
    cells = [make(one) for one in drawn]
    for group in groups(compile_plan(cells, SHAPE, Budget(kib * KIB, 3))):
        keys = [
            (suffix_of(one, len(group.prefix)), one.write is not None, layer_of(one)) for one in members(group, cells)
        ]
        assert keys == sorted(keys)


@settings(deadline=None)
@given(drawn=many_cells, kib=st.integers(540, 680))
def test_any_plan_keeps_within_its_budget(drawn: list[Any], kib: int) -> None:
    cells = [make(one) for one in drawn]
    budget = kib * KIB
    plan = compile_plan(cells, SHAPE, Budget(budget, 40))
    for wave in plan.waves:
        alone = len({index for group in wave.groups for index in group.cells}) == 1
        assert alone or kept_bytes(wave) <= budget / 4
        for group in wave.groups:
            assert own_kv_bytes(group) <= budget / 2
    assert plan.cost.peak_bytes <= budget or len(cells) == 0


@settings(deadline=None)
@given(drawn=many_cells, max_rows=st.integers(1, 5))
def test_every_state_is_captured_once_in_one_pass_over_its_source(drawn: list[Any], max_rows: int) -> None:
    cells = [make(one) for one in drawn]
    plan = compile_plan(cells, SHAPE, Budget(2**30, max_rows))
    passes = [source for wave in plan.waves for batch in wave.source_batches for source in batch]
    assert len({source.ids for source in passes}) == len(passes)
    found = Counter(state for source in passes for state in source.states)
    wanted: set[State] = set()
    for one in cells:
        for vector in one.write.vectors if one.write else ():
            if isinstance(vector, State):
                wanted.add(vector)
            if isinstance(vector, Noise | Neutral):
                wanted.add(vector.like)
            if isinstance(vector, Neutral):
                wanted.add(vector.state)
            if isinstance(vector, Mean):
                wanted.update(vector.states)
    assert found == Counter(wanted)
    assert all(state.ids == source.ids for source in passes for state in source.states)


@settings(deadline=None)
@given(drawn=many_cells)
def test_every_prompt_with_a_write_is_run_once_and_read_at_all_its_layers(drawn: list[Any]) -> None:
    cells = [make(one) for one in drawn]
    prompts = [prompt for wave in compile_plan(cells, SHAPE, AMPLE).waves for prompt in wave.prompts]
    wanted: dict[Ids, set[int]] = {}
    for one in cells:
        if one.write is not None:
            wanted.setdefault(one.target_ids, set()).add(one.write.site.layer)
    assert {prompt.ids: set(prompt.layers) for prompt in prompts} == wanted
    for prompt in prompts:
        assert list(prompt.layers) == sorted(prompt.layers)


@pytest.mark.parametrize("positions", [((3,), (1,)), ((1,), (3,))])
def test_a_prompt_that_is_written_at_several_places_is_kept_from_the_first_on(positions: tuple[Any, Any]) -> None:
    """ "x {} x" and "x x {}" have the same tokens."""
    cells = [cell((1, 2, 3, 4), positions[0], layer=2), cell((1, 2, 3, 4), positions[1], layer=3)]
    (wave,) = compile_plan(cells, SHAPE, AMPLE).waves
    assert [(prompt.start, prompt.layers) for prompt in wave.prompts] == [(1, (2, 3))]


def test_one_source_pass_for_all_layers_and_positions() -> None:
    cells = [cell((1, 2, 3), (1,), State((7, 8), p, layer)) for p in (0, 1) for layer in range(5)]
    (wave,) = compile_plan(cells, SHAPE, AMPLE).waves
    ((one,),) = wave.source_batches
    assert len(one.states) == 10


def test_a_prefix_is_shared_where_enough_cells_have_it() -> None:
    def prefixes(n: int) -> list[Ids]:
        return [group.prefix for group in groups(compile_plan([cell((1, 2, 3), (2,))] * n, SHAPE, AMPLE))]

    assert prefixes(MIN_SHARING - 1) == [()]
    assert prefixes(MIN_SHARING) == [(1, 2)]


def test_cells_without_a_write_share_the_longest_prefix_that_is_there_anyway() -> None:
    written = [cell((1, 2, 3, 4, 5), (3,))] * MIN_SHARING + [cell((1, 2, 9, 9), (1,))] * MIN_SHARING
    others = [cell((1, 2, 3, 4, 5)), cell((1, 2, 8, 8)), cell((1, 5)), cell((6, 6, 6)), cell((1, 2, 3))]
    plan = compile_plan([*written, *others], SHAPE, AMPLE)
    prefix_of = {index: group.prefix for group in groups(plan) for index in group.cells}
    found = [prefix_of[len(written) + k] for k in range(len(others))]
    assert found == [(1, 2, 3), (1,), (1,), (), (1,)], "never all of a text: its last token is run"


def test_a_placeholder_at_the_start_has_an_empty_prefix() -> None:
    plan = compile_plan([cell((1, 2, 3), (0, 2))] * 9, SHAPE, AMPLE)
    (group,) = groups(plan)
    assert (group.prefix, plan.cost.prefill_tokens) == ((), 27)


def test_batches_are_of_equal_size_and_no_larger_than_pays() -> None:
    def n_rows(n: int, budget: Budget = AMPLE) -> int:
        return groups(compile_plan([cell((1, 2), (1,))] * n, SHAPE, budget))[0].n_rows

    assert [n_rows(1), n_rows(MAX_ROWS), n_rows(MAX_ROWS + 2), n_rows(10, Budget(2**30, 7))] == [
        1, MAX_ROWS, MAX_ROWS // 2 + 1, 5,
    ]  # fmt: skip


def test_no_more_rows_start_at_once_than_tokens_pay() -> None:
    ids = tuple(range(100))
    (group,) = groups(compile_plan([cell(ids, (0,))] * 60, SHAPE, AMPLE))
    assert (group.n_rows, group.n_started) == (60, MAX_TOKENS // 100)
    (long,) = groups(compile_plan([cell(ids * 30, (0,))] * 3, SHAPE, AMPLE))
    assert (long.n_rows, long.n_started) == (3, 1)


def test_waves_are_cut_in_order_where_states_would_be_more_than_their_share() -> None:
    cells = [cell((1, 2, 3), (1,), State((7, 8), 0, layer), layer=layer % 5) for layer in range(2000)]
    assert len(compile_plan(cells, SHAPE, AMPLE).waves) == 1
    plan = compile_plan(cells, SHAPE, Budget(300 * KIB))
    assert len(plan.waves) > 1
    cut = [sorted(index for group in wave.groups for index in group.cells) for wave in plan.waves]
    assert [index for indices in cut for index in indices] == list(range(2000))
    for wave, indices in zip(plan.waves, cut, strict=True):
        states = [state.layer for batch in wave.source_batches for source in batch for state in source.states]
        assert sorted(states) == indices, "each wave has its own states, and no others"
        assert len(wave.prompts) == 1


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    big = replace(SHAPE, kv_bytes_per_token=2**20)
    with pytest.raises(OptionError, match=r"one cell of 7 tokens needs about 7.1 MiB.*budget of 9.0 MiB there are \d"):
        compile_plan([cell((1, 2, 3), (1,))], big, Budget(9 * 2**20))
    with pytest.raises(OptionError, match=r"a source of 9 tokens needs about 9.1 MiB.*budget of 11.0 MiB"):
        compile_plan([cell((1, 2, 3), (1,), State((1,) * 9, 0, 0))], big, Budget(11 * 2**20))
    compile_plan([cell((1, 2, 3), (1,), State((1,) * 9, 0, 0))], big, Budget(24 * 2**20))


def test_candidates_need_more_room_than_a_text() -> None:
    """Answers run in copies of the rows that they follow, beside them."""
    texts = [cell((1, 2, 3, n), (1,), new=4) for n in range(60)]
    scored = [replace(one, readout=Readout("candidates"), candidates=((1, 2, 3, 4),)) for one in texts]
    rows = [groups(compile_plan(cells, SHAPE, Budget(3 * 2**20)))[0].n_rows for cells in (texts, scored)]
    assert 0 < 2 * rows[1] <= rows[0] < 60


# ------------------------------------------------------------------------------------------------------------- memory


def n_rows(cells: list[Cell], kib: int, **shape: Any) -> int:
    plan = compile_plan(cells, replace(SHAPE, **shape), Budget(kib * KIB))
    assert plan.cost.peak_bytes <= kib * KIB
    return max(group.n_rows for group in groups(plan))


def test_logits_scores_and_what_is_read_leave_room_for_fewer_rows() -> None:
    """Whatever a row makes is counted: each of these alone lowers the number of rows that run at once."""
    read = [cell((1, 2, 3, n), (1,), kind="next-token") for n in range(60)]
    texts = [cell((1, 2, 3, n), (1,)) for n in range(60)]
    usual = n_rows(texts, 3072)
    assert n_rows(texts, 3072, head_columns=8192) < usual
    assert n_rows(texts, 3072, row_pair_bytes=4096) < usual
    assert n_rows(texts, 3072, kv_bytes_per_token=8192) < usual
    assert n_rows(texts, 3072, kv_bytes_per_token=2048, shares_prefix=False) < n_rows(
        texts, 3072, kv_bytes_per_token=2048
    )
    drawn = [replace(one, decoding=Decoding(5, temperature=0.5)) for one in texts]
    assert n_rows(drawn, 3072, d_vocab=10_000) < n_rows(texts, 3072, d_vocab=10_000)
    more = [replace(one, readout=Readout("next-token", 500)) for one in read]
    assert n_rows(more, 3072) < n_rows(read, 3072)
    scored = [replace(one, readout=Readout("candidates"), candidates=((1,), (2,))) for one in texts]
    many = [replace(one, candidates=((1,), (2,)) * 2000) for one in scored]
    assert n_rows(many, 3072) < n_rows(scored, 3072)


def test_only_those_that_start_together_run_their_whole_suffix() -> None:
    """Of rows whose suffix fills a pass one starts at a time, and what that makes is needed once."""
    long = [cell(tuple(range(MAX_TOKENS)), (0,), new=1) for _ in range(40)]
    plan = compile_plan(long, SHAPE, Budget(8 * 2**20))
    (group,) = groups(plan)
    started = 32 * SHAPE.d_model * SHAPE.itemsize * MAX_TOKENS
    assert (group.n_rows, group.n_started) == (40, 1)
    assert started < plan.cost.peak_bytes < 40 * started


def test_whole_texts_are_counted_with_their_scores() -> None:
    budget = Budget(6 * 2**20)
    light, heavy, heaviest = (replace(SHAPE, text_pair_bytes=pair) for pair in (0, 400, 4000))
    source = [cell((1, 2, 3), (1,), State((k,) * 40, 0, 0)) for k in range(30)]
    prompts = [cell((k, *range(40)), (20,)) for k in range(30)]
    for cells in (source, prompts):
        assert compile_plan(cells, heavy, budget).cost.peak_bytes <= budget.memory_bytes
    usual, fewer = (compile_plan(source, shape, budget).waves[0].source_batches for shape in (light, heavy))
    assert max(map(len, fewer)) < max(map(len, usual))
    usual, fewer = (compile_plan(prompts, shape, budget).waves[0].prompt_tokens for shape in (light, heavy))
    assert 41 <= fewer < usual
    with pytest.raises(OptionError, match="an inspection prompt of 41 tokens needs about"):
        compile_plan(prompts, heaviest, budget)
    with pytest.raises(OptionError, match="a source of 40 tokens needs about"):
        compile_plan(source, heaviest, budget)


def test_an_empty_plan_costs_nothing() -> None:
    plan = compile_plan([], SHAPE, AMPLE)
    assert plan.waves == ()
    assert plan.cost.flops == plan.cost.peak_bytes == plan.cost.forward_passes == 0


def test_the_cost_counts_what_runs() -> None:
    cells = [cell((1, 2, 3, 4), (2,), State((7, 8, 9), 1, layer), layer=layer) for layer in range(4)]
    plan = compile_plan(cells, SHAPE, AMPLE)
    cost = plan.cost
    assert (cost.source_tokens, cost.prompt_tokens, cost.prefill_tokens, cost.decoded_tokens) == (3, 4, 4 * 2, 4 * 4)
    assert cost.forward_passes == 1 + 1 + 1 + 4, "source, prompt, start, and a pass for each token but the first"
    assert cost.block_tokens == 4 * (3 + 4) + 2 * (4 + 3 + 2 + 1) + 4 * 16, "rows run from their own layer on"
    assert cost.head_tokens == cost.chosen_tokens == 4 * 5
    assert cost.flops == 2 * (cost.block_tokens * (1000 - 800) // 4 + 800 * 20)
    assert (plan.alone.forward_passes, plan.alone.tokens) == (4 * (1 + 5), 4 * (3 + 4 + 4))


def test_the_cost_of_candidates_is_all_their_tokens_but_the_first() -> None:
    answers = ((1,), (1, 2, 3), (4, 5))
    cells = [cell((1, 2, 3), (2,), kind="candidates", layer=n, candidates=answers) for n in range(4)]
    cost = compile_plan(cells, SHAPE, AMPLE).cost
    assert (cost.prefill_tokens, cost.candidate_tokens, cost.decoded_tokens) == (4, 4 * 3, 0)
    assert cost.head_tokens == 4 * (1 + 3)
    assert cost.chosen_tokens == 0


def test_an_explanation_adds_up_and_says_so_in_words() -> None:
    plan = compile_plan([cell((1, 2, 3, 4), (2,), State((7, 8, 9), 1, 0))] * 4, SHAPE, AMPLE)
    explained = plan.explain(Speed(1.0, 10.0, 100.0, 1000.0, 2.0, 3.0))
    cost = plan.cost
    assert explained.seconds == cost.forward_passes + 10 * cost.block_tokens + 100 * cost.chosen_tokens
    assert explained.alone_seconds == 2 * plan.alone.forward_passes + 3 * plan.alone.tokens
    text = str(explained)
    assert "one cell at a time" in text
    assert f"{cost.forward_passes:,}" in text.splitlines()[2]


def test_the_plan_does_not_depend_on_the_order_of_cells_but_for_their_numbers() -> None:
    cells = [cell((1, 2, 3, n), (2,)) for n in range(6)]
    shuffled = [cells[i] for i in (3, 0, 5, 1, 4, 2)]
    assert compile_plan(cells, SHAPE, AMPLE).cost == compile_plan(shuffled, SHAPE, AMPLE).cost
