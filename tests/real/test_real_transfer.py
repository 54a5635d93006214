"""Across the two real models, and with masks in one prompt: the engine gives the reference's tokens."""

import pytest
import torch

import oracle
import patchscopes as ps
from patchscopes.engine import Engine
from patchscopes.mappings import Mapping, Mappings, Side, Transfer
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.reference import Reference
from patchscopes.run import run_cells
from patchscopes.spec import InspectionPrompt, Result, Source

pytestmark = pytest.mark.real

AMPLE = Budget(2**32)
TEXTS = ("I went to Spain", "He lives in Japan", "They came from Egypt")
SECOND, FIRST = "The capital of", " the country that is home to the Eiffel Tower"


def same(fast: Result, slow: Result) -> bool:
    """Equal up to the reference's first near-tie (rule 9)."""
    n = next((step for step, gap in enumerate(slow.gaps) if gap < oracle.NEAR_TIE), None)
    assert fast.token_ids is not None
    assert slow.token_ids is not None
    return fast.token_ids[:n] == slow.token_ids[:n]


def test_one_model_into_the_other(smol: Model, gemma: Model) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(smol.d_model, gemma.d_model, generator=draw) / smol.d_model**0.5
    by_pair = {(20, b): Mapping(weight * 21, torch.ones(gemma.d_model) * b) for b in (0, 9)}
    mapping = Mappings("affine", Side.of(smol), Side.of(gemma), by_pair)
    inspection = ps.prepare(
        smol, TEXTS, prompt="The capital of {} is", target_model=gemma, mapping=mapping, source_layers=[20],
        target_layers=[0, 9], max_new_tokens=4, controls=("self", "zero", "random", "random-state", "shuffled", "mean"),
    )  # fmt: skip
    transfer, cells = Transfer(smol, gemma, mapping), inspection.plan.cells
    slow, fast = (run_cells(gemma, run(transfer), cells, AMPLE) for run in (Reference, Engine))
    assert [k for k in range(len(cells)) if not same(fast[k], slow[k])] == []


@pytest.mark.parametrize("name", ["smol", "gemma"])
@pytest.mark.parametrize("ending", ["", " is"])
def test_back_patching(name: str, ending: str, request: pytest.FixtureRequest) -> None:
    """The prompt's end is masked where nothing stands behind π1."""
    model: Model = request.getfixturevalue(name)
    text = f"{SECOND}{FIRST}{ending}"
    source = Source(
        text, at="Tower", mask=SECOND, expect=("Paris",), prompt=InspectionPrompt(text, at=SECOND, mask=FIRST)
    )
    cells = ps.prepare(
        model, source, source_layers=[5, model.n_layers], target_layers=[0, 3], max_new_tokens=5,
        controls=("unpatched", "self", "zero", "random"),
    ).plan.cells  # fmt: skip
    slow, fast = (run_cells(model, run(model), cells, AMPLE) for run in (Reference, Engine))
    assert [k for k in range(len(cells)) if not same(fast[k], slow[k])] == []
    assert len({result.token_ids for result in fast}) > 1


def test_surprisals_agree(smol: Model) -> None:
    options = {"prompt": "token-identity", "readout": "next-token", "source_layers": [3, 30], "controls": ("shuffled",)}
    found = [list(ps.inspect(smol, TEXTS, runner=runner, **options)) for runner in ("engine", "reference")]  # type: ignore[arg-type]
    for fast, slow in zip(*found, strict=True):
        assert (fast.source_next, fast.agrees) == (slow.source_next, slow.agrees)
        assert fast.surprisal_under_source == pytest.approx(slow.surprisal_under_source, abs=1e-3)
        assert fast.surprisal_under_patched == pytest.approx(slow.surprisal_under_patched, abs=1e-3)
