"""Rule 0: the model that runs is the model that is there, whatever was done to it and when.

The oracle is the official way on plain Hugging Face hooks: one source pass, then the model's own cached `generate`. So
what a caller's hook gives there is what it must give here.
"""

import copy
import warnings
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
import torch

import changes
import families
import patchscopes as ps
from generated import PROMPT, SOURCE, as_generated, built, loaded, look, said, wrapped
from patchscopes.results import Results

SHARED = frozenset(name for name in changes.HOOKED if "column" not in name and "alone" not in name)
WITH_EXPERTS = ("mixtral", "qwen3-moe")


# ------------------------------------------------------------------------------------------------- edits after the load


def pairs() -> Iterator[tuple[str, str, str, torch.dtype]]:
    """Every edit with every family; runners and dtypes in turn, so that each meets each."""
    turns = cycle(
        (runner, dtype)
        for dtype in (torch.float32, torch.float32, torch.bfloat16)
        for runner in ("engine", "reference")
    )
    for index, family in enumerate(families.FAMILIES):
        for _ in range(index % 6):
            next(turns)
        for name in changes.EDITS:
            yield (name, family, *next(turns))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_edit_after_load_is_what_runs(family: str) -> None:
    wrong, unmoved = [], []
    plain: dict[Any, Results] = {}
    for name, of, runner, dtype in pairs():
        if of != family:
            continue
        hf = built(family, dtype)
        model = wrapped(hf)
        if (runner, dtype) not in plain:
            plain[runner, dtype] = look(model, runner=runner, target_layers=[0])
        before = plain[runner, dtype]
        look(model, runner=runner, target_layers=[0], max_new_tokens=1, controls=())  # all is made that is kept
        changes.EDITS[name](hf)
        after = look(model, runner=runner, target_layers=[0])
        by = "reference" if dtype == torch.float32 else runner  # which says the same where rounding does not show
        expected = look(wrapped(copy.deepcopy(hf)), runner=by, target_layers=[0])
        identities = {row.cell for row in before} & {row.cell for row in after}
        if said(after) != said(expected) or identities:
            wrong.append((name, runner, dtype, len(identities)))
        if said(after) == said(before):
            unmoved.append(name)
    assert not wrong
    assert len(unmoved) <= 3, "an edit that changes no text shows nothing"


@pytest.mark.parametrize("name", changes.EDITS)
def test_what_runs_after_an_edit_is_what_the_model_generates(name: str) -> None:
    """The test above compares with a model that was loaded after the edit; this one with the oracle."""
    hf = built("llama")
    model = loaded(hf)
    look(model)
    changes.EDITS[name](hf)
    assert said(look(model)) == as_generated(model)


@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_experts_that_are_edited_run_as_they_are(family: str, runner: str) -> None:
    hf = built(family)
    model = loaded(hf)
    before = look(model, runner=runner)
    changes.experts(hf)
    after = look(model, runner=runner)
    assert said(after) == as_generated(model) != said(before)
    assert not {row.cell for row in before} & {row.cell for row in after}


# --------------------------------------------------------------------------------------------------- hooks and forwards


@pytest.mark.parametrize("family", families.FAMILIES)
def test_hooks_give_what_the_models_own_generate_gives(family: str) -> None:
    """Set before the load and after it, in turn, by both runners in turn; every other hook with every other family."""
    wrong = []
    start = families.FAMILIES.index(family)
    for turn, (name, change) in enumerate(changes.HOOKED.items(), start=start):
        if (turn + start // 2) % 2:
            continue
        hf = built(family)
        if (turn + start) // 2 % 2:
            change(hf)
            model = loaded(hf)
        else:
            model = loaded(hf)
            look(model)
            change(hf)
        found = look(model, runner="reference" if turn % 3 == 2 else "engine")
        if said(found) != as_generated(model):
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("name", changes.HOOKED)
def test_only_hooks_that_do_not_bear_batches_run_one_row_at_a_time(name: str) -> None:
    hf = built("llama")
    model = loaded(hf)
    changes.HOOKED[name](hf)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ps.inspect(model, SOURCE, prompt=PROMPT, source_layers=1, max_new_tokens=1, controls=())
    told = [str(warning.message) for warning in seen if "each row runs by itself" in str(warning.message)]
    assert bool(told) == (name not in SHARED), told


def test_a_hook_that_goes_leaves_the_model_as_loaded() -> None:
    hf = built("gemma3")
    model = loaded(hf)
    before = look(model)
    handle = hf.get_submodule("model.layers.1").register_forward_hook(changes.last_column)
    assert said(look(model)) != said(before)
    handle.remove()
    after = look(model)
    assert said(after) == said(before)
    assert [row.cell for row in after] == [row.cell for row in before]


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("family", families.FAMILIES)
def test_adapters_run_as_they_are(family: str) -> None:
    """Every other change with every other family, and each with both runners."""
    wrong = []
    start = families.FAMILIES.index(family)
    for turn, (name, change) in enumerate(changes.ADAPTERS.items(), start=start):
        if turn % 2:
            continue
        runner = ("engine", "reference")[turn // 2 % 2]
        hf = built(family)
        changes.adapted(hf)
        model = loaded(hf)
        before = look(model, runner=runner)
        change(hf)
        after = look(model, runner=runner)
        same = said(after) == said(before)
        if said(after) != as_generated(model) or same != (name == "merged"):
            wrong.append(name)
        if {row.cell for row in before} & {row.cell for row in after}:
            wrong.append(f"{name}: identities")
        if name == "merged":
            changes.unmerged(hf)
            if said(look(model)) != as_generated(model):
                wrong.append("unmerged")
    assert not wrong
