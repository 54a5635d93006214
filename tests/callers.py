"""What callers' code computes with, and how that changes without a trace on the model: globals, attributes, functions.

Each takes a tiny llama, sets something up on it, and returns a change that is made later, after the load.
"""

import types
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import changes

Later = Callable[[], object]
Case = Callable[[PreTrainedModel, pytest.MonkeyPatch], Later]

VECTOR = 9 * torch.sin(torch.arange(32.0))
STEER = types.SimpleNamespace(scale=0.0)
NUMBERS = {"scale": 0.0}


def second(hf: PreTrainedModel) -> Any:
    return changes.blocks(hf)[1]


# ------------------------------------------------------------------------------------------------ attributes of modules


class Wrapped(nn.Module):
    """A block within a module of the caller's, which adds what it has."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.added = block, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        return output if self.added is None else output + self.added


def attribute_of_a_wrapper(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    wrapped = Wrapped(second(hf)).eval()
    changes.blocks(hf)[1] = wrapped
    return lambda: setattr(wrapped, "added", VECTOR)


def attribute_that_an_own_forward_reads(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    block = second(hf)
    forward, block.vector = block.forward, torch.zeros(32)
    block.forward = types.MethodType(lambda self, *args, **kwargs: forward(*args, **kwargs) + self.vector, block)
    return lambda: setattr(block, "vector", VECTOR)


def attribute_of_another_module(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    block, norm = second(hf), hf.get_submodule("model.norm")
    norm.vector = torch.zeros(32)  # type: ignore[assignment]
    block.register_forward_hook(lambda _, __, output: output + norm.vector)
    return lambda: norm.vector.copy_(VECTOR)  # type: ignore[operator,union-attr]


def _set_everywhere(find: Callable[[Any], Any], name: str, value: Any) -> Case:
    def case(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
        return lambda: [setattr(find(block), name, value) for block in changes.blocks(hf)]

    return case


def number_in_place(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    scaling = torch.tensor(0.35)
    for block in changes.blocks(hf):
        block.self_attn.scaling = scaling  # type: ignore[union-attr,assignment]
    return lambda: scaling.fill_(3.0)


def weight_with_gaps(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    matrix: Any = changes.matrix(hf)
    wide = torch.zeros(matrix.weight.shape[0], matrix.weight.shape[1] + 8)
    wide[:, 4:-4] = matrix.weight
    matrix.weight = nn.Parameter(wide[:, 4:-4], requires_grad=False)
    return lambda: matrix.weight.data.mul_(-3.0)


class Controlled(LlamaMLP):
    """A subclass that agrees with its base until something beside it says otherwise."""

    scale = 1.0

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.control.scale * type(self).scale  # type: ignore[no-untyped-call,union-attr]


def _controlled(hf: PreTrainedModel) -> types.SimpleNamespace:
    control = types.SimpleNamespace(scale=1.0)
    for block in changes.blocks(hf):
        block.mlp.__class__, block.mlp.control = Controlled, control  # type: ignore[union-attr,assignment]
    return control


def controller_of_a_subclass(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    control = _controlled(hf)
    return lambda: setattr(control, "scale", -3.0)


def attribute_of_a_class(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    _controlled(hf)
    return lambda: patched.setattr(Controlled, "scale", -3.0)


# ------------------------------------------------------------------------------------------------------ what hooks hold


class Object:
    """A hook with a mode and a number, in slots."""

    __slots__ = ("mode", "scale")

    def __init__(self) -> None:
        self.mode, self.scale = "all", 9.0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return changes.third_column(module, args, output) if self.mode == "third" else changes.wave(output, self.scale)


def mode_of_a_hook(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    second(hf).register_forward_hook(hook := Object())
    return lambda: setattr(hook, "mode", "third")


def number_in_slots(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    second(hf).register_forward_hook(hook := Object())
    return lambda: setattr(hook, "scale", -5.0)


def global_object(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    patched.setattr(STEER, "scale", 0.0)
    second(hf).register_forward_hook(lambda _, __, output: changes.wave(output, STEER.scale))
    return lambda: setattr(STEER, "scale", 9.0)


def _helped(output: Any) -> Any:
    return changes.wave(output, NUMBERS["scale"])


def global_of_a_helper(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    patched.setitem(NUMBERS, "scale", 0.0)
    second(hf).register_forward_hook(lambda _, __, output: next(_helped(one) for one in [output]))
    return lambda: NUMBERS.update(scale=9.0)


def helper_that_is_exchanged(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    second(hf).register_forward_hook(lambda _, __, output: _helped(output))
    return lambda: patched.setitem(globals(), "_helped", partial(changes.wave, scale=7.0))


def number_of_a_module_of_the_callers(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    patched.setattr(changes, "SCALE", 0.0, raising=False)
    second(hf).register_forward_hook(lambda _, __, output: changes.wave(output, changes.SCALE))  # type: ignore[attr-defined]
    return lambda: patched.setattr(changes, "SCALE", 9.0)


def cached_function(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    patched.setitem(NUMBERS, "scale", 0.0)
    number = lru_cache(lambda: NUMBERS["scale"])
    second(hf).register_forward_hook(lambda _, __, output: changes.wave(output, number()))
    return lambda: (NUMBERS.update(scale=9.0), number.cache_clear())


def attribute_of_a_function(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return changes.wave(output, hook.scale)  # type: ignore[attr-defined]

    hook.scale = 0.0  # type: ignore[attr-defined]
    second(hf).register_forward_hook(hook)
    return lambda: setattr(hook, "scale", 9.0)


def strength_as_a_tensor(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    """A hook that is the same for all texts at strength 0, and then acts on one column."""
    strength = torch.zeros(())
    second(hf).register_forward_hook(
        lambda module, args, output: output + strength * (changes.third_column(module, args, output) - output)
    )
    return lambda: strength.fill_(1.0)


def hook_on_what_is_compiled(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    blocks = changes.blocks(hf)
    blocks[1] = torch.compile(blocks[1], backend="eager")  # type: ignore[call-overload]
    return lambda: blocks[1].register_forward_hook(lambda _, __, output: changes.wave(output))


def positions_that_are_stretched(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    def stretched(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("position_ids")
        return (args, kwargs if given is None else kwargs | {"position_ids": 3 * given})

    return lambda: hf.register_forward_pre_hook(stretched, with_kwargs=True)


def settings_within_a_hook(hf: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    patched.setattr(changes, "SCALE", 0.0, raising=False)

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        import changes as settings  # as notebooks do it

        return settings.wave(output, settings.SCALE)  # type: ignore[attr-defined]

    second(hf).register_forward_hook(hook)
    return lambda: patched.setattr(changes, "SCALE", 9.0)


class Pair(NamedTuple):
    """A hook that is a tuple."""

    scale: torch.Tensor
    name: str = "pair"

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        return changes.wave(output, float(self.scale))


def tuple_of_a_class(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    scale = torch.zeros(())
    second(hf).register_forward_hook(Pair(scale))
    return lambda: scale.fill_(9.0)


def weight_in_a_partial(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    matrix: Any = changes.matrix(hf)
    weight = matrix.weight.detach().clone()
    matrix.forward = partial(nn.functional.linear, weight=weight)
    return lambda: weight.mul_(-3.0)


def forward_of_torch(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    return lambda: [setattr(block.mlp.act_fn, "forward", torch.tanh) for block in changes.blocks(hf)]  # type: ignore[union-attr]


class Scaled(nn.Module):
    """A module that is none of the model's, with a number that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self._scale = 0.0

    def forward(self, x: Tensor) -> Any:
        return changes.wave(x, self._scale)


def module_that_a_hook_holds(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    outside = nn.Sequential(nn.Identity(), Scaled())
    second(hf).register_forward_hook(lambda _, __, output: outside(output))
    return lambda: setattr(outside[1], "_scale", 9.0)


# ----------------------------------------------------------------------------------- functions and classes of libraries


def _exchanged(owner: Any, name: str, make: Callable[[Any], Any]) -> Case:
    def case(_: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
        return lambda: patched.setattr(owner, name, make(getattr(owner, name)))

    return case


def _scaled(by: float) -> Callable[[Any], Any]:
    return lambda function: lambda *args, **kwargs: function(*args, **kwargs) * by


def _doubled(update: Callable[..., Any]) -> Callable[..., Any]:
    def doubled(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = update(*args, **kwargs)
        return keys, 2 * values

    return doubled


def registered_attention(_: PreTrainedModel, patched: pytest.MonkeyPatch) -> Later:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def doubled(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return 2 * before(*args, **kwargs)[0], None

    return lambda: patched.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", doubled)


# ------------------------------------------------------------------------------------------------------ buffers, config


def angles(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    found: Any = hf.get_submodule("model.rotary_emb")
    return lambda: found.inv_freq.mul_(0.3)


def end_of_text(hf: PreTrainedModel, _: pytest.MonkeyPatch) -> Later:
    return lambda: setattr(hf.generation_config, "eos_token_id", list(range(5, 300)))


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        *(
            number_in_place,
            weight_with_gaps,
            attribute_of_a_wrapper,
            attribute_that_an_own_forward_reads,
            attribute_of_another_module,
        ),
        *(controller_of_a_subclass, attribute_of_a_class, mode_of_a_hook, number_in_slots, global_object),
        *(global_of_a_helper, helper_that_is_exchanged, number_of_a_module_of_the_callers, cached_function),
        *(attribute_of_a_function, module_that_a_hook_holds, registered_attention, angles, end_of_text),
    )
} | {
    "eps of NumPy": _set_everywhere(lambda block: block.input_layernorm, "variance_epsilon", np.float32(3.0)),
    "eps as a tensor": _set_everywhere(lambda block: block.input_layernorm, "variance_epsilon", torch.tensor(3.0)),
    "scaling as a tensor": _set_everywhere(lambda block: block.self_attn, "scaling", torch.tensor(3.0)),
    "keys": _exchanged(DynamicLayer, "update", _doubled),
    "silu": _exchanged(nn.functional, "silu", lambda _: torch.tanh),
    "attention": _exchanged(nn.functional, "scaled_dot_product_attention", _scaled(2.0)),
    "linear": _exchanged(nn.functional, "linear", _scaled(1.3)),
    "rotation": _exchanged(modeling_llama, "rotate_half", _scaled(-1.4)),
    "forward of every MLP": _exchanged(LlamaMLP, "forward", _scaled(-2.0)),
    "forward of every norm": _exchanged(LlamaRMSNorm, "forward", _scaled(1.5)),
    "forward of every linear": _exchanged(nn.Linear, "forward", _scaled(1.3)),
}
