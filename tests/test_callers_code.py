"""Rule 0 where a caller's code runs: what it reads may change without a trace on the model, and rows follow."""

import copy
import threading
import types
import warnings
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

import callers
import changes
import patchscopes as ps
from generated import PROMPT, SOURCE, as_generated, built, loaded, look, said, wrapped
from patchscopes import errors
from patchscopes.lenses.table import lens_table
from patchscopes.models import Model
from patchscopes.prompts import tokenize


@pytest.mark.parametrize("name", callers.CASES)
def test_what_a_callers_code_reads_is_followed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = built("llama")
    change = callers.CASES[name](hf, monkeypatch)
    model = wrapped(hf)
    before = look(model)
    assert said(before) == as_generated(model)
    change()
    after = look(model)
    assert said(after) == as_generated(model) != said(before)
    assert said(look(model, runner="reference")) == said(after)
    assert {row.cell for row in look(model)} == {row.cell for row in after}
    if name != "end_of_text":  # which cells record themselves
        assert not {row.cell for row in before} & {row.cell for row in after}


@pytest.mark.parametrize("name", callers.CASES)
def test_what_was_changed_before_the_load_runs_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = wrapped(built("llama"))
    hf = built("llama")
    callers.CASES[name](hf, monkeypatch)()
    model = loaded(hf)
    assert said(look(model)) == as_generated(model)
    if name not in ("angles", "end_of_text", "silu"):  # docs/reliability.md: "Edits before the load"
        assert model.identity != plain.identity


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


def test_functions_that_hold_themselves_are_rebound() -> None:
    hf = built("llama")
    block = changes.block(hf)
    forward: Any = type(block).forward

    def again(*args: Any, depth: int = 0, **kwargs: Any) -> Any:
        return changes.wave(forward(block, *args, **kwargs)) if depth else again(*args, depth=1, **kwargs)

    block.forward = again  # type: ignore[assignment]
    model = loaded(hf)
    for runner in ("engine", "reference"):
        assert said(look(model, runner=runner)) == as_generated(model)


def test_a_root_that_hands_all_on_takes_what_its_base_takes() -> None:
    class Root(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    hf = built("llama")
    hf.__class__ = Root
    model = loaded(hf)
    assert said(look(model)) == as_generated(model)


def test_a_block_with_a_config_of_its_own_attends_like_the_others() -> None:
    hf = built("llama")
    blocks: Any = changes.blocks(hf)
    blocks[2] = copy.deepcopy(blocks[1])
    blocks[2].self_attn.layer_idx = 2
    model = loaded(hf)
    assert said(look(model)) == as_generated(model)


def test_a_scale_of_logits_is_the_models_own() -> None:
    hf: Any = built("cohere")
    model = loaded(hf)
    hf.logit_scale = -1.0  # the smallest is then the likeliest
    assert said(look(model)) == as_generated(model)
    ids = tokenize(model, SOURCE).ids
    own = hf(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    for cell in lens_table(model, SOURCE, layers=[model.n_layers]).cells:
        assert cell.top[0].logprob == pytest.approx(float(own[cell.position].max()), abs=1e-4)


def test_counters_of_torch_run_beside_a_run() -> None:
    hf = built("llama")
    model = loaded(hf)
    expected = said(look(model))
    with FlopCounterMode(display=False) as counter:
        found = look(model)
    assert said(found) == expected
    assert counter.get_total_flops() > 0
    assert said(look(model)) == expected


def in_threads(n: int, model: Model) -> list[Any]:
    """What `n` threads find at the same time."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(said(look(model)))) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_that_meet_one_change_take_the_model_anew_once() -> None:
    for _ in range(5):
        hf = built("llama")
        model = wrapped(hf)
        look(model)
        changes.block(hf).register_forward_hook(lambda _, __, output: changes.wave(output))
        found = in_threads(4, model)
        assert found == [as_generated(model)] * 4


def test_threads_share_modules_that_cannot_be_copied() -> None:
    hf = built("llama")
    forward = hf.forward

    class Callable:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

    hf.forward = Callable()
    model = wrapped(hf)
    expected = as_generated(model)
    assert in_threads(2, model) + in_threads(3, model) == [expected] * 5


def test_tensors_of_every_kind_may_be_held() -> None:
    for held in (
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        types.SimpleNamespace(__dict__=1),
    ):
        hf = built("llama")
        changes.block(hf).register_forward_hook(lambda _, __, output, held=held: changes.wave(output))
        model = loaded(hf)
        assert said(look(model)) == as_generated(model)


def test_what_torch_raises_for_mixed_dtypes_is_told() -> None:
    hf = built("llama")
    model = loaded(hf)
    changes.matrix(hf).to(torch.bfloat16)
    with pytest.raises(errors.ModelRunError, match="fails when it is run"):
        look(model)


def test_logits_that_a_hook_forbids_are_no_fault() -> None:
    hf = built("llama")
    banned = torch.arange(5, 90)
    hf.get_output_embeddings().register_forward_hook(lambda _, __, output: output.index_fill(-1, banned, -float("inf")))
    model = loaded(hf)
    assert said(look(model)) == as_generated(model)


def test_experts_that_peft_parametrizes_at_each_call_are_no_change() -> None:
    hf = built("mixtral")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an old name
        adapted = peft.get_peft_model(hf, config).eval()  # type: ignore[arg-type]
    model = loaded(adapted.base_model.model)
    before = look(model)
    assert said(before) == as_generated(model)
    for name, parameter in hf.named_parameters():
        if "experts" in name and "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    after = look(model)
    assert said(after) == as_generated(model) != said(before)
