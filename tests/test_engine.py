"""Rule 9: the engine, the reference and an oracle on plain hooks give the same tokens, whatever runs beside a cell."""

import random
import warnings

import pytest

import families
import oracle
import patchscopes as ps
from cells import AMPLE, NEW_TOKENS, PROMPTS, SOURCES, grid, make_cell, oracle_run, state_cell
from conftest import tiny_model
from patchscopes.engine import Engine
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.reference import Reference
from patchscopes.resolve import CONTROLS
from patchscopes.run import run_cells
from patchscopes.spec import Mean, Neutral, Noise, Site, State, Write, Zero


@pytest.mark.parametrize("family", families.FAMILIES)
def test_engine_equals_the_oracle_on_every_layer_pair(family: str) -> None:
    model, cells = tiny_model(family), grid(family)
    results = run_cells(model, Engine(model), cells, Budget(AMPLE))
    assert len(results) == len(cells)
    for index, result in enumerate(results):
        expected = oracle_run(family, index)
        assert expected.agrees_with(result.token_ids), (index, cells[index])
        assert expected.n_comparable < NEW_TOKENS or result.finish_reason == expected.finish_reason


@pytest.mark.parametrize("family", families.FAMILIES)
def test_reference_equals_the_oracle_on_every_layer_pair(family: str) -> None:
    model, cells = tiny_model(family), grid(family)
    for index, result in enumerate(run_cells(model, Reference(model), cells, Budget(AMPLE))):
        expected = oracle_run(family, index)
        assert expected.agrees_with(result.token_ids), (index, cells[index])
        assert result.gaps == pytest.approx(expected.gaps, abs=1e-4)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("max_rows", range(1, 8))
def test_batches_do_not_show(family: str, max_rows: int) -> None:
    model = tiny_model(family)
    order = random.Random(max_rows).sample(range(len(grid(family))), 12)
    results = run_cells(model, Engine(model), [grid(family)[i] for i in order], Budget(AMPLE, max_rows))
    for index, result in zip(order, results, strict=True):
        assert oracle_run(family, index).agrees_with(result.token_ids), (index, grid(family)[index])


@pytest.mark.parametrize("family", families.FAMILIES)
def test_next_token_readout_is_the_oracles_distribution(family: str) -> None:
    model = tiny_model(family)
    cells = [
        state_cell(model, layer % 3, layer % 4, (layer, layer), "next-token") for layer in range(model.n_layers + 1)
    ]
    engine = run_cells(model, Engine(model), cells, Budget(AMPLE, 4))
    reference = run_cells(model, Reference(model), cells, Budget(AMPLE))
    for cell, fast, slow in zip(cells, engine, reference, strict=True):
        assert cell.write is not None
        state = cell.write.vectors[0]
        assert isinstance(state, State)
        run = oracle.patchscope(
            families.build(family),
            oracle.Source(state.ids, state.position, state.layer),
            oracle.Target(cell.target_ids, cell.write.positions, cell.write.site.layer),
            max_new_tokens=1,
        )
        logprobs = run.first_logits.log_softmax(-1)
        entropy = float(-(logprobs.exp() * logprobs).sum())
        for result in (fast, slow):
            assert result.top is not None
            assert [top.logprob for top in result.top] == pytest.approx(logprobs.topk(10).values.tolist(), abs=1e-3)
            assert all(float(logprobs[top.token_id]) == pytest.approx(top.logprob, abs=1e-3) for top in result.top)
            assert result.entropy == pytest.approx(entropy, abs=1e-3)
            assert result.token_ids == (result.top[0].token_id,)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_mean_is_the_oracles(family: str) -> None:
    """Of all three sources, and of two of them, at every layer, written at the same."""
    model = tiny_model(family)
    (prompt, positions), cells = PROMPTS[0], []
    for layer in range(model.n_layers):
        for several in (SOURCES, SOURCES[1:]):
            mean = Mean(tuple(State(*source, layer) for source in several))
            cells.append(make_cell(model, Write(Site(layer), positions, (mean,)), prompt))
    assert len({cell.identity() for cell in cells}) == len(cells)
    for runner in (Engine(model), Reference(model)):
        for cell, result in zip(cells, run_cells(model, runner, cells, Budget(AMPLE, 3)), strict=True):
            assert cell.write is not None
            (vector,) = cell.write.vectors
            assert isinstance(vector, Mean)
            what = oracle.Mean([oracle.Source(s.ids, s.position, s.layer) for s in vector.states])
            target = oracle.Target(prompt, positions, cell.write.site.layer)
            expected = oracle.patchscope(families.build(family), what, target, max_new_tokens=NEW_TOKENS)
            assert expected.agrees_with(result.token_ids), cell


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_control_is_the_references(family: str) -> None:
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        cells = ps.prepare(
            model,
            ["the cat of Spain", "hello", ps.Source("go to Wales", at="to"), "the capital"],
            prompt=["the capital of {} is", "{} of {} is"],
            source_layers=[0, 2],
            target_layers=[1, 2],
            controls=tuple(CONTROLS),
            draws=2,
            max_new_tokens=4,
        ).plan.cells
    kinds = {type(vector) for cell in cells if cell.write for vector in cell.write.vectors}
    assert kinds == {State, Zero, Noise, Neutral, Mean}
    fast = run_cells(model, Engine(model), cells, Budget(AMPLE, 7))
    for a, b, cell in zip(fast, run_cells(model, Reference(model), cells, Budget(AMPLE)), cells, strict=True):
        n = next((step for step, gap in enumerate(b.gaps) if gap < oracle.NEAR_TIE), None)
        assert a.token_ids is not None
        assert b.token_ids is not None
        assert a.token_ids[:n] == b.token_ids[:n], cell


def test_cells_without_a_write_run_beside_others(llama: Model) -> None:
    """Controls that write nothing share a prefix with cells that do, or have none to share."""
    prompt, positions = PROMPTS[0]
    cells = [
        state_cell(llama, 0, 0, (2, 1)),
        make_cell(llama, None, prompt),
        make_cell(llama, None, (*prompt[:5], 77, 78, 79, *prompt[6:])),
        make_cell(llama, None, (99, 98)),
        make_cell(llama, None, (99,)),
        make_cell(llama, Write(Site(0), positions, (Zero(),)), prompt),
    ]
    for max_rows in (1, 2, 6):
        for cell, result in zip(cells, run_cells(llama, Engine(llama), cells, Budget(AMPLE, max_rows)), strict=True):
            assert result.token_ids == Reference(llama).run_cell(cell).token_ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("order", [(1, 3, 2), (3, 1, 2)])
def test_the_same_prompt_may_be_written_at_several_places(family: str, order: tuple[int, ...]) -> None:
    """ "x {} x" and "x x {}" have the same tokens, and one run of them serves both."""
    model, prompt = tiny_model(family), PROMPTS[0][0]
    state = State(*SOURCES[0], 2)
    cells = [
        make_cell(model, Write(Site(layer), (position,), (state,)), prompt) for position in order for layer in (0, 2, 3)
    ]
    cells.append(make_cell(model, Write(Site(2), (1, 4), (state, state)), prompt))
    for cell, result in zip(cells, run_cells(model, Engine(model), cells, Budget(AMPLE)), strict=True):
        assert result.token_ids == Reference(model).run_cell(cell).token_ids, cell


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "falcon", "mixtral"])
def test_one_token_source_at_layer_0_is_the_token_itself(family: str) -> None:
    """For rotary models a one-token source at 0 → 0 equals the prompt with that token in the placeholder's stead; a
    learned position travels with the state, so for GPT-2 it does not (rule 1)."""
    model = tiny_model(family)
    (source, _), (prompt, positions) = SOURCES[1], PROMPTS[0]
    written = make_cell(model, Write(Site(0), positions, (State(source, 0, 0),)), prompt, "next-token")
    swapped = make_cell(model, None, (*prompt[: positions[0]], *source, *prompt[positions[0] + 1 :]), "next-token")
    for runner in (Engine(model), Reference(model)):
        a, b = run_cells(model, runner, [written, swapped], Budget(AMPLE))
        assert a.top is not None
        assert b.top is not None
        same = all(abs(x.logprob - y.logprob) < 1e-4 for x, y in zip(a.top, b.top, strict=True))
        assert same == (family != "gpt2")
