"""Rule 0 where a caller's code runs: what it reads may change without a trace on the model, and rows follow."""

import copy
import importlib
import random
import threading
import time
import types
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import callers
import changes
import families
import patchscopes as ps
from generated import PROMPT, SOURCE, as_generated, built, loaded, look, said, wrapped
from patchscopes import errors
from patchscopes.alone import Batched
from patchscopes.lenses.table import lens_table
from patchscopes.mappings import Mapping, fit
from patchscopes.models import Model
from patchscopes.models.hasher import Hasher
from patchscopes.passes import text_states
from patchscopes.prompts import tokenize
from patchscopes.trust import distrust


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
    alone = (
        "angles",
        "end_of_text",
        "silu",
        "eps of NumPy",
        "eps as a tensor",
        "scaling as a tensor",
        "number_in_place",
    )
    if name not in alone:  # docs/reliability.md: "Edits before the load"
        assert model.identity != plain.identity


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


def test_a_factor_of_a_block_may_become_a_tensor() -> None:
    for value in (torch.tensor(3.0), np.float32(3.0)):
        hf = built("granite")
        model = wrapped(hf)
        before = look(model)
        for block in changes.blocks(hf):
            block.residual_multiplier = value  # type: ignore[assignment]
        for runner in ("engine", "reference"):
            after = look(model, runner=runner)
            assert said(after) == as_generated(model)
            assert not {row.cell for row in before} & {row.cell for row in after}


def at_column_20(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    if output.shape[1] > 22:
        output = output.clone()
        output[:, 20] += 5
    return output


def test_hooks_are_tried_on_texts_as_long_as_the_calls_sources() -> None:
    sources = [" ".join(["the capital of Spain is cat and hello"] * n) for n in (3, 4, 5)]
    found = []
    for runner in ("engine", "reference"):
        hf = built("llama")
        model = wrapped(hf)
        changes.blocks(hf)[0].register_forward_hook(at_column_20)
        rows = look(model, sources, runner=runner, readout="next-token", max_new_tokens=None)
        found.append([[top.logprob for top in row.top] for row in rows])
    assert found[0] == [pytest.approx(one, abs=1e-4) for one in found[1]]


def test_passes_over_longer_texts_than_were_tried_run_alone() -> None:
    texts = [tuple(range(5, 5 + n)) for n in (30, 35, 40)]
    found = []
    for tried in (False, True):
        hf = built("llama")
        changes.blocks(hf)[0].register_forward_hook(at_column_20)
        model = wrapped(hf)
        if tried:
            look(model)
        found.append({one.index: one.states[2] for one in text_states(model, texts, [2])})
    assert all(torch.allclose(found[0][index], found[1][index]) for index in range(3))


def test_passes_say_nothing_of_whether_a_hook_bears_batches() -> None:
    hf = built("llama")
    model = wrapped(hf)
    changes.block(hf).register_forward_hook(lambda _, __, output: changes.wave(output))
    list(text_states(model, [(5, 6, 7)], [2]))
    assert distrust(model) is None


def test_a_mode_of_training_that_a_helper_asks_for_is_refused() -> None:
    class Drop(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return dropped(self, self.inner(x))

    hf = built("llama")
    model = loaded(hf)
    parent, name = changes.place(hf)
    setattr(parent, name, Drop(getattr(parent, name)))
    with pytest.raises(errors.UnsupportedModelError, match="training mode"):
        look(model)


def dropped(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(x, 0.3, module.training)


def test_the_model_that_fails_is_named() -> None:
    """Of two models the one whose run raised, whichever runner runs them."""
    hf, fails = built("llama"), [False]
    hf.config._name_or_path = "the-source"

    def hook(*_: object) -> None:
        if fails[0]:
            raise RuntimeError("broken")

    changes.block(hf).register_forward_hook(hook)
    source, target = loaded(hf), loaded(built("gpt2"))
    for runner in ("engine", "reference"):
        fails[0] = False
        options: Any = {"prompt": PROMPT, "target_model": target, "source_layers": 1, "target_layers": [1]}
        prepared = ps.prepare(source, SOURCE, runner=runner, max_new_tokens=1, **options)
        fails[0] = True
        with pytest.raises(errors.ModelRunError, match="the-source fails when it is run"):
            prepared.results()


def test_what_a_hook_raises_is_told_at_load_and_in_a_run() -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken on purpose")

    hf = built("llama")
    model = loaded(hf)
    changes.block(hf).register_forward_hook(broken)
    for runner in ("engine", "reference"):
        with pytest.raises(errors.ModelRunError, match="broken on purpose"):
            look(model, runner=runner)
    with pytest.raises(errors.SelfCheckError, match="broken on purpose"):
        loaded(hf)


def test_objects_that_differ_have_other_identities() -> None:
    pairs = [
        (random.Random(0), random.Random(1)),
        (Mapping(torch.eye(2), torch.zeros(2)), Mapping(3 * torch.eye(2), torch.zeros(2))),
        (deque([1], maxlen=1), deque([1], maxlen=2)),
        (LlamaConfig(rms_norm_eps=1e-5), LlamaConfig(rms_norm_eps=1e-6)),
    ]
    for one, other in pairs:
        digests = []
        for held in (one, other):
            hasher = Hasher()
            hasher.add(held)
            assert hasher.complete
            digests.append(hasher.digest())
        assert digests[0] != digests[1], type(one)


def test_large_tensors_are_hashed_once_and_then_looked_at() -> None:
    large = torch.zeros(1100, 1000)
    digests = []
    for change in (lambda: None, lambda: None, lambda: large.data[:, 7].fill_(1.0)):
        change()
        hasher = Hasher()
        hasher.add(large)
        digests.append(hasher.digest())
    assert digests[0] == digests[1] != digests[2]


def test_none_is_the_default_of_load() -> None:
    with pytest.raises(errors.UnknownModelError):
        ps.load("no-such-model", dtype=None, device=None)
    with pytest.raises(errors.OptionError, match="variant is 3"):
        ps.load(built("llama"), tokenizer=families.tiny_tokenizer(), variant=3)  # type: ignore[arg-type]


def test_a_lens_and_a_mapping_belong_to_what_is_attached_too() -> None:
    hf = built("llama")
    model = wrapped(hf)
    texts = [f"the capital of {word} is cat {k}" for word in ("Spain", "Wales", "Syria") for k in range(30)]
    mapping = fit(model, model, texts, [(1, model.n_layers)], kind="orthogonal")
    lens_table(model, SOURCE, layers=[1], lens=mapping)
    handle = changes.block(hf).register_forward_hook(lambda _, __, output: changes.wave(output))
    for _ in range(2):  # the first call meets the change, and says so already
        with pytest.raises(errors.MappingError, match="attached"):
            lens_table(model, SOURCE, layers=[1], lens=mapping)
    handle.remove()
    lens_table(model, SOURCE, layers=[1], lens=mapping)


def test_things_that_hold_each_other_are_hashed_in_a_moment() -> None:
    several = [types.SimpleNamespace() for _ in range(60)]
    for one in several:
        one.others = several
    started = time.monotonic()
    hasher = Hasher()
    hasher.add(several[0])
    assert hasher.complete
    assert time.monotonic() - started < 1.0


def test_a_mode_around_all_functions_meets_the_callers_own_modules() -> None:
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            return 1.2 * found if function is nn.functional.silu else found

    model = wrapped(built("llama"))
    plain = said(look(model))
    with Doubled():
        rows = [said(look(model, runner=runner)) for runner in ("engine", "reference")]
        assert rows == [as_generated(model)] * 2
    assert said(look(model)) == plain


def test_a_hook_acts_on_how_a_mask_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLOOM makes its ALiBi of a mask, as its own `generate` hands one over."""
    hf = built("bloom")
    model = wrapped(hf)
    before = look(model)
    build = hf.transformer.build_alibi_tensor
    monkeypatch.setattr(hf.transformer, "build_alibi_tensor", lambda *args, **kwargs: -3 * build(*args, **kwargs))
    for runner in ("engine", "reference"):
        after = look(model, runner=runner)
        assert said(after) == as_generated(model) != said(before)


def test_packages_of_settings_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack_of_mine").mkdir()  # a namespace: it has no file
    (tmp_path / "pack_of_mine" / "settings.py").write_text("SCALE = 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    settings: Any = importlib.import_module("pack_of_mine.settings")
    pack: Any = importlib.import_module("pack_of_mine")

    digests = []
    for scale in (1.0, 9.0):
        settings.SCALE = scale
        for held in (lambda output: output * pack.settings.SCALE, settings, types.SimpleNamespace(settings=settings)):
            hasher = Hasher()
            hasher.add(held)
            digests.append(hasher.digest())
    assert len(set(digests)) == len(digests)


def test_hooks_of_one_factory_on_one_module_are_told_apart() -> None:
    """Two recorders of one name: what each gathers is its own doing, and nothing is tried anew at each call."""
    hf = built("llama")
    for _ in range(2):
        seen: list[Any] = []
        changes.block(hf).register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
    model = wrapped(hf)
    look(model)
    tried = model.found(Batched)
    look(model)
    assert tried is not None
    assert model.found(Batched) is tried
