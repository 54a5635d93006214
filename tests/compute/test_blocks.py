"""Norms, gated MLPs and rotary embeddings: which are found, and that they are the same and go away."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import families
from conftest import tiny_model
from patchscopes import kernels
from patchscopes.compute import Compute, blocks, compute_of, linear
from patchscopes.compute.blocks import mlp_function, norm_function, rotary_functions
from patchscopes.models import Model, wrap_in_memory

if kernels.native().library is None or not linear.available():
    pytest.skip("no kernels here", allow_module_level=True)

IDS = torch.tensor([[17, 33, 60, 21, 45], [80, 41, 27, 50, 9]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_weight(module: nn.Module) -> nn.Module:
    module.weight.data = drawn(*module.weight.shape)  # type: ignore[arg-type,union-attr]
    return module.requires_grad_(False)


@pytest.mark.parametrize("d", [8, 30, 64])
@pytest.mark.parametrize("make", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_norms_of_llama_and_gemma_are_found(make: Callable[..., nn.Module], d: int, eps: float) -> None:
    norm = with_weight(make(d, eps=eps))
    function = norm_function(norm)
    assert function is not None
    for x in (drawn(2, 3, d), 1e-3 * drawn(4, 1, d), drawn(3, 2, d).transpose(0, 1)):
        assert torch.allclose(function(x), norm(x), rtol=1e-5, atol=1e-5)


class Centred(nn.Module):
    """What a LayerNorm does under an RMS norm's name."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


class WithoutEps(Centred):
    """A norm that forgets its eps, which shows where states are small."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.eps = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        return x * x.pow(2).mean(-1, keepdim=True).rsqrt() * self.weight


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(16), nn.LayerNorm(16, bias=False), Centred(16), WithoutEps(16), nn.Linear(16, 16), nn.Identity()],
    ids=["LayerNorm", "without bias", "by another name", "without eps", "Linear", "Identity"],
)
def test_other_norms_are_not_taken(module: nn.Module) -> None:
    with torch.no_grad():
        assert norm_function(module) is None


@pytest.mark.parametrize(("family", "activation"), [("llama", "silu"), ("gemma2", "gelu"), ("gemma3", "gelu")])
def test_gated_mlps_are_found(family: str, activation: str) -> None:
    mlp = tiny_model(family).blocks[0].mlp
    linears = linear.linear_functions(mlp.modules(), repack=True)  # type: ignore[union-attr]
    function = mlp_function(mlp, linears)  # type: ignore[arg-type]
    assert function is not None
    for shape in ((2, 3, 32), (7, 1, 32)):
        x = drawn(*shape)
        assert torch.allclose(function(x), mlp(x), rtol=1e-4, atol=1e-4)  # type: ignore[operator]
    assert type(mlp.act_fn).__name__.lower().startswith(activation) or activation == "gelu"  # type: ignore[union-attr]


def test_an_mlp_with_another_activation_is_not_taken() -> None:
    mlp = copy.deepcopy(tiny_model("llama").blocks[0].mlp)
    linears = linear.linear_functions(mlp.modules(), repack=True)  # type: ignore[union-attr]
    assert mlp_function(mlp, linears) is not None  # type: ignore[arg-type]
    for other in (nn.ReLU(), nn.Tanh()):
        mlp.act_fn = other  # type: ignore[union-attr]
        assert mlp_function(mlp, linears) is None  # type: ignore[arg-type]
    assert mlp_function(mlp, {}) is None, "nor one of layers that cannot be packed"  # type: ignore[arg-type]


def kinds(compute: Compute) -> set[str]:
    return {type(module).__name__ for module in compute.forwards}


def test_what_is_found_in_whole_models() -> None:
    """So that a new version of transformers that hides them does not make everything slow in silence."""
    assert {"Linear", "LlamaRMSNorm", "LlamaMLP"} <= kinds(compute_of(tiny_model("llama")))
    assert {"Linear", "Gemma3RMSNorm", "Gemma3MLP"} <= kinds(compute_of(tiny_model("gemma3")))
    assert kinds(compute_of(tiny_model("gpt2"))) == {"Conv1D"}
    assert tiny_model("llama").final_norm in compute_of(tiny_model("llama")).forwards
    assert list(compute_of(tiny_model("llama")).rotary) == [modeling_llama.apply_rotary_pos_emb]
    assert compute_of(tiny_model("gpt2")).rotary == {}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_models_run_the_same_with_what_stands_in(family: str) -> None:
    model = tiny_model(family)
    expected = model.all_logits(IDS)
    with compute_of(model).installed():
        found = model.all_logits(IDS)
    assert torch.allclose(found, expected, rtol=1e-4, atol=2e-4)
    assert torch.equal(model.all_logits(IDS), expected), "and as before when it is taken away"


def test_functions_stand_in_on_private_modules_alone(llama: Model) -> None:
    compute = compute_of(llama)
    original = modeling_llama.apply_rotary_pos_emb
    before = [dict(module.__dict__) for module in llama.hf.modules()]
    with compute.installed(), llama.running() as tree:
        private = [module for module in tree.hf.modules() if "forward" in module.__dict__]
        assert len(private) == len(compute.forwards) + llama.n_layers, "and attention, for its rotary embedding"
        assert modeling_llama.apply_rotary_pos_emb is original
        assert [dict(module.__dict__) for module in llama.hf.modules()] == before
        assert not set(private) & set(llama.hf.modules())
    with pytest.raises(KeyError), compute.installed():
        raise KeyError
    assert not any("forward" in module.__dict__ for module in llama.hf.modules())


def test_one_tree_is_lent_to_one_pass_at_a_time(llama: Model) -> None:
    compute = compute_of(llama)
    with compute.trees.lent() as one, compute.trees.lent() as other:
        assert one.hf is not other.hf
    with compute.trees.lent() as again:
        assert again in (one, other), "and made once"


def test_modules_with_hooks_or_forwards_of_their_own_run_themselves() -> None:
    hf = copy.deepcopy(families.build("llama"))
    hooked = hf.get_submodule("model.layers.1.mlp.up_proj")
    hooked.register_forward_hook(lambda _, __, output: output + 1)
    own = hf.get_submodule("model.layers.2.input_layernorm")
    own.forward = partial(type(own).forward, own)  # type: ignore[method-assign]
    model = wrap_in_memory(hf, families.tiny_tokenizer())
    forwards = compute_of(model).forwards
    assert not {hooked, own, hf.get_submodule("model.layers.1.mlp")} & set(forwards)
    assert hf.get_submodule("model.layers.1.mlp.gate_proj") in forwards
    with compute_of(model).installed(), model.running() as tree:
        assert {hooked, own} <= set(tree.hf.modules()), "the caller's very modules"


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "mixtral", "phi3"])
def test_rotary_embeddings_that_turn_halves_are_found_and_run(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    calls: list[int] = []
    rotated = blocks._rotated
    monkeypatch.setattr(blocks, "_rotated", lambda *args: calls.append(1) or rotated(*args))
    with compute_of(model).installed():
        model.all_logits(IDS)
    assert len(calls) == 2 * model.n_layers, "of queries and keys in each block"


@pytest.mark.parametrize("family", ["cohere", "gptj", "bloom", "opt"])
def test_others_are_not(family: str) -> None:
    """Cohere pairs neighbours, GPT-J has a function of its own, and the others turn nothing."""
    assert rotary_functions(part for block in tiny_model(family).blocks for part in block.modules()) == {}


def test_rotary_falls_back_where_its_input_is_of_another_kind() -> None:
    original = modeling_llama.apply_rotary_pos_emb
    q, k = (drawn(2, 3, n_heads, 8).transpose(1, 2) for n_heads in (4, 2))
    cos, sin = drawn(2, 2, 3, 8, seed=1)
    calls: list[tuple[Any, ...]] = [
        (q, k, cos, sin),
        (q, k, cos[:1], sin[:1]),  # one angle for all rows
        (q[:, :, :1], k[:, :, :1], cos[:, :1], sin[:, :1]),
        (q[:, :, :1], k[:, :, :1], cos[:1, :1], sin[:1, :1]),
        (q.contiguous(), k.contiguous(), cos, sin),
        (q.bfloat16(), k.bfloat16(), cos.bfloat16(), sin.bfloat16()),
    ]
    by_head = q.transpose(1, 2), k.transpose(1, 2), cos, sin
    (stands_in,) = rotary_functions(tiny_model("llama").blocks[0].modules()).values()
    for call in calls:
        for found, expected in zip(stands_in(*call), original(*call), strict=True):
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-6)
    for found, expected in zip(stands_in(*by_head, unsqueeze_dim=2), original(*by_head, unsqueeze_dim=2), strict=True):
        assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------------- weights that change


@pytest.fixture
def own() -> Model:
    """A model of one's own, to be changed."""
    return wrap_in_memory(copy.deepcopy(families.build("llama")), families.tiny_tokenizer())


def installed_logits(model: Model) -> Tensor:
    model.current()
    with compute_of(model).installed():
        return model.all_logits(IDS)


def test_it_is_made_once_as_long_as_no_weight_changes(own: Model) -> None:
    first = compute_of(own)
    installed_logits(own)
    assert compute_of(own) is first


@pytest.mark.parametrize(
    "path", ["model.layers.1.mlp.up_proj", "model.layers.2.input_layernorm", "lm_head", "model.norm"]
)
def test_weights_changed_in_place_are_noticed(own: Model, path: str) -> None:
    first = compute_of(own)
    with torch.no_grad():
        own.hf.get_submodule(path).weight.mul_(1.5)  # type: ignore[operator,union-attr]
    assert torch.allclose(installed_logits(own), own.all_logits(IDS), rtol=1e-4, atol=2e-4)
    assert compute_of(own) is not first


def test_weights_that_are_exchanged_are_noticed(own: Model) -> None:
    first = compute_of(own)
    projection = own.hf.get_submodule("model.layers.1.mlp.up_proj")
    old = projection.weight.detach().clone()  # type: ignore[operator,union-attr]
    projection.weight = nn.Parameter(drawn(*old.shape), requires_grad=False)  # type: ignore[arg-type]
    assert torch.allclose(installed_logits(own), own.all_logits(IDS), rtol=1e-4, atol=2e-4)
    assert compute_of(own) is not first
    second = compute_of(own)
    own.hf.load_state_dict({**own.hf.state_dict(), "model.layers.1.mlp.up_proj.weight": old})
    assert torch.allclose(installed_logits(own), tiny_model("llama").all_logits(IDS), rtol=1e-4, atol=2e-4)
    assert compute_of(own) is not second


def test_other_dtypes_run_by_their_own_modules(own: Model) -> None:
    half = wrap_in_memory(own.hf.to(torch.bfloat16), families.tiny_tokenizer())
    compute = compute_of(half)
    assert (compute.forwards, compute.rotary) == ({}, {})
    assert torch.equal(installed_logits(half), half.all_logits(IDS))
