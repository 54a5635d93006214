"""Rule 0 where a model changes while it runs: by its own hooks, which is no change, or by another, which ends it."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import callers
import changes
import patchscopes as ps
from generated import PROMPT, SOURCE, as_generated, built, loaded, look, said, wrapped
from patchscopes import errors, guard
from patchscopes.mappings import FitOptions, fit


def test_hooks_that_are_set_during_the_pass_run() -> None:
    """On modules that runs have copies of: then the caller's own run, a text at a time, and a warning says so."""
    for find in (changes.block, changes.attention, lambda hf: hf.get_output_embeddings()):
        hf = built("llama")
        handles: list[Any] = []

        def set_it(_: nn.Module, __: Any, find: Any = find, hf: Any = hf, handles: list[Any] = handles) -> None:
            handles.append(find(hf).register_forward_hook(lambda _, __, output: changes.wave(output)))

        hf.register_forward_pre_hook(set_it)
        hf.register_forward_hook(lambda _, __, ___, handles=handles: handles.pop().remove())
        model = loaded(hf)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = ps.inspect(model, SOURCE, prompt=PROMPT, source_layers=1, target_layers=[0], max_new_tokens=3)
        assert any("each row runs by itself" in str(warning.message) for warning in seen)
        for runner in ("engine", "reference"):
            assert said(look(model, runner=runner)) == as_generated(model)
        assert not find(hf)._forward_hooks
        assert {row.status for row in found} == {"ok"}


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_a_steering_vector_that_is_exchanged_during_a_run_ends_it(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MIN_INTERVAL_S", 1e9)  # no look by the clock, which might hold the first row good
    hf = built("llama")
    held = {"vector": torch.zeros(32)}
    changes.block(hf).register_forward_hook(lambda _, __, output: output + held["vector"])
    model = loaded(hf)
    stream = ps.stream(model, [f"the cat {i}" for i in range(40)], prompt=PROMPT, runner=runner, max_new_tokens=1)
    first = next(stream)
    held["vector"] = callers.VECTOR
    with pytest.raises(errors.ModelChangedError, match="computes with something else") as caught:
        list(stream)
    assert first.source == "the cat 0"
    assert 0 in caught.value.rows


def test_what_a_hook_records_or_sets_during_a_run_does_not_end_it() -> None:
    """Attributes of other modules, by phase; counters; states: none of it is a change of the model by another."""
    hf = built("llama")
    seen: list[torch.Tensor] = []
    count = {"calls": 0}

    def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        module.self_attn.scaling = 3.0 if args[0].shape[1] > 1 else 0.1
        seen.append(args[0])
        count["calls"] += 1

    for block in changes.blocks(hf):
        block.register_forward_pre_hook(note)
    model = loaded(hf)
    for _ in range(2):
        for runner in ("engine", "reference"):
            assert said(look(model, runner=runner)) == as_generated(model)


def test_a_fit_over_a_model_that_changes_meanwhile_ends() -> None:
    hf = built("llama")
    model = wrapped(hf)
    texts = [f"the capital of {word} is cat {k}" for word in ("Spain", "Wales", "Syria") for k in range(30)]

    def tell(_: str) -> None:
        changes.through_data(hf)

    with pytest.raises(errors.ModelChangedError):
        fit(model, model, texts, [(1, 2)], kind="orthogonal", options=FitOptions(tell=tell))
