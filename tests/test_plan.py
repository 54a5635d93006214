"""The plan, with no model at hand: each cell once, nothing over budget, what is shared is shared."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.errors import OptionError
from patchscopes.plan import MAX_ROWS, Batch, Budget, ModelShape, compile_plan
from patchscopes.spec import Cell, Decoding, Ids, Neutral, Noise, Readout, Site, State, Vector, Write, Zero

SHAPE = ModelShape(n_layers=4, d_model=8, d_vocab=100, kv_bytes_per_token=64, n_matrix_parameters=1000, itemsize=4)
AMPLE = Budget(2**30)


def cell(
    ids: Ids, positions: tuple[int, ...] = (), vector: Vector | None = None, *, kind: str = "text", new: int = 5
) -> Cell:
    """A cell on `ids`; it writes `vector` (zero unless given) at `positions`, or nothing where there are none."""
    write = Write(Site(1), positions, (vector or Zero(),) * len(positions)) if positions else None
    return Cell("m", "float32", ids, write, Readout(kind), Decoding(new))  # type: ignore[arg-type]


ids_of = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


# Plain numbers, of which `make` makes cells: the check of the nouns' types draws random numbers of its own.
parts = st.fixed_dictionaries(
    {
        "ids": ids_of,
        "positions": st.sets(st.integers(0, 7), max_size=2),
        "source": ids_of,
        "layer": st.integers(0, 4),
        "vector": st.integers(0, 3),
        "kind": st.sampled_from(["text", "next-token"]),
        "new": st.integers(1, 6),
    }
)


def make(drawn: dict[str, Any]) -> Cell:
    ids, source = drawn["ids"], drawn["source"]
    state = State(source, len(source) // 2, drawn["layer"])
    vector = (state, Zero(), Noise(state, 0, 0), Neutral(State((9, 9), 1, 2), state))[drawn["vector"]]
    positions = tuple(sorted({position % len(ids) for position in drawn["positions"]}))
    return cell(ids, positions, vector, kind=drawn["kind"], new=drawn["new"])


def peak_bytes(batch: Batch) -> int:
    """What one batch takes: keys and values, activations of what is run, logits."""
    kv = 2 * SHAPE.kv_bytes_per_token * (batch.width + batch.new_tokens)
    activations = 16 * SHAPE.d_model * SHAPE.itemsize * batch.prefill
    return len(batch.cells) * (kv + activations + 8 * SHAPE.d_vocab)


@settings(deadline=None)
@given(drawn=st.lists(parts, max_size=20), max_rows=st.integers(1, 5), kib=st.integers(8, 40))
def test_any_plan_is_complete_within_budget_and_sound(drawn: list[Any], max_rows: int, kib: int) -> None:
    cells = [make(one) for one in drawn]
    budget = Budget(kib * 1024, max_rows)
    plan = compile_plan(cells, SHAPE, budget)
    assert Counter(index for batch in plan.batches for index in batch.cells) == Counter(range(len(cells)))
    assert plan.cells == tuple(cells)
    for batch in plan.batches:
        rows = [cells[index] for index in batch.cells]
        assert len(rows) <= max_rows
        assert peak_bytes(batch) <= budget.memory_bytes
        assert len({row.readout.kind for row in rows}) == 1
        assert batch.width == max(len(row.target_ids) for row in rows)
        assert batch.new_tokens == max(row.new_tokens for row in rows)
        assert batch.prefill <= batch.width
        for row, prefix in zip(rows, batch.prefixes, strict=True):
            shared = plan.prefixes[prefix]
            assert row.target_ids[: len(shared)] == shared
            assert len(row.target_ids) - len(shared) <= batch.prefill, "what is not shared is run"
            assert len(shared) < len(row.target_ids), "the last token is run: its logits are read"
            assert row.write is None or len(shared) <= min(row.write.positions), "what is written is run"
    assert plan.cost.peak_bytes == max(map(peak_bytes, plan.batches), default=0)


@settings(deadline=None)
@given(drawn=st.lists(parts, max_size=20), max_rows=st.integers(1, 5))
def test_every_state_is_captured_once_in_one_pass_over_its_source(drawn: list[Any], max_rows: int) -> None:
    cells = [make(one) for one in drawn]
    plan = compile_plan(cells, SHAPE, Budget(2**30, max_rows))
    passes = [source for batch in plan.source_batches for source in batch]
    assert len({source.ids for source in passes}) == len(passes)
    assert all(len(batch) <= max_rows for batch in plan.source_batches)
    found = Counter(state for source in passes for state in source.states)
    wanted = set()
    for one in cells:
        for vector in one.write.vectors if one.write else ():
            if isinstance(vector, State):
                wanted.add(vector)
            elif isinstance(vector, Noise):
                wanted.add(vector.like)
            elif isinstance(vector, Neutral):
                wanted |= {vector.state, vector.like}
    assert found == Counter(wanted)
    assert all(state.ids == source.ids for source in passes for state in source.states)


def test_one_source_pass_for_all_layers_and_positions() -> None:
    cells = [cell((1, 2, 3), (1,), State((7, 8), p, layer)) for p in (0, 1) for layer in range(5)]
    ((one,),) = compile_plan(cells, SHAPE, AMPLE).source_batches
    assert len(one.states) == 10


def test_cells_without_a_write_share_the_longest_prefix_that_is_there_anyway() -> None:
    cells = [
        cell((1, 2, 3, 4, 5), (3,)),
        cell((1, 2, 9, 9), (1,)),
        cell((1, 2, 3, 4, 5)),
        cell((1, 2, 8, 8)),
        cell((1, 5)),
        cell((6, 6, 6)),
        cell((1, 2, 3)),
    ]
    plan = compile_plan(cells, SHAPE, AMPLE)
    prefix_of = {
        index: plan.prefixes[prefix]
        for batch in plan.batches
        for index, prefix in zip(batch.cells, batch.prefixes, strict=True)
    }
    assert prefix_of == {0: (1, 2, 3), 1: (1,), 2: (1, 2, 3), 3: (1,), 4: (1,), 5: (6, 6), 6: (1,)}
    assert set(plan.prefixes) == {(1, 2, 3), (1,), (6, 6)}, "the last has none to share and makes its own"


def test_a_placeholder_at_the_start_has_an_empty_prefix() -> None:
    plan = compile_plan([cell((1, 2, 3), (0, 2))], SHAPE, AMPLE)
    assert plan.prefixes == ((),)
    assert plan.batches[0].prefill == 3
    assert plan.cost.forward_passes == 5, "no pass for an empty prefix, none for a zero vector, one a step"


def test_batches_hold_rows_of_like_suffix_together() -> None:
    cells = [cell((1,) * (4 + n % 3), (3,)) for n in range(9)]
    plan = compile_plan(cells, SHAPE, Budget(2**30, 3))
    assert [{len(cells[i].target_ids) for i in batch.cells} for batch in plan.batches] == [{4}, {5}, {6}]


def test_no_batch_is_larger_than_pays() -> None:
    plan = compile_plan([cell((1, 2), (1,)) for _ in range(MAX_ROWS + 1)], SHAPE, AMPLE)
    assert [len(batch.cells) for batch in plan.batches] == [MAX_ROWS, 1]


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    big = replace(SHAPE, kv_bytes_per_token=2**20)
    with pytest.raises(OptionError, match=r"one cell of 3 \+ 5 tokens needs about 16.0 MiB.*budget is 2.0 MiB"):
        compile_plan([cell((1, 2, 3), (1,))], big, Budget(2 * 2**20))
    with pytest.raises(OptionError, match=r"a source of 9 tokens needs about 18.0 MiB.*budget is 17.0 MiB"):
        compile_plan([cell((1, 2, 3), (1,), State((1,) * 9, 0, 0))], big, Budget(17 * 2**20))
    compile_plan([cell((1, 2, 3), (1,), State((1,) * 9, 0, 0))], big, Budget(19 * 2**20))


def test_an_empty_plan_costs_nothing() -> None:
    plan = compile_plan([], SHAPE, AMPLE)
    assert (plan.batches, plan.source_batches, plan.prefixes) == ((), (), ())
    assert plan.cost.flops == plan.cost.peak_bytes == plan.cost.forward_passes == 0


def test_the_cost_counts_what_runs() -> None:
    cells = [cell((1, 2, 3, 4), (2,), State((7, 8, 9), 1, layer)) for layer in range(3)]
    cost = compile_plan(cells, SHAPE, AMPLE).cost
    assert (cost.source_tokens, cost.prefix_tokens, cost.prefill_tokens, cost.decoded_tokens) == (3, 2, 3 * 2, 3 * 4)
    assert cost.forward_passes == 1 + 1 + 5
    assert cost.flops == 2 * 1000 * (3 + 2 + 6 + 12)


def test_the_plan_does_not_depend_on_the_order_of_cells_but_for_their_numbers() -> None:
    cells = [cell((1, 2, 3, n), (2,)) for n in range(6)]
    shuffled = [cells[i] for i in (3, 0, 5, 1, 4, 2)]
    assert compile_plan(cells, SHAPE, AMPLE).cost == compile_plan(shuffled, SHAPE, AMPLE).cost
