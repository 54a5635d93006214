"""What callers do to a loaded model: edits of weights, exchanged modules, masks, adapters, hooks, forwards.

Each takes a Hugging Face model and changes it so that its texts change; it says nothing to anyone.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Change = Callable[[PreTrainedModel], object]
BLOCKS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
FINAL_NORMS = ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm")


def blocks(hf: PreTrainedModel) -> nn.ModuleList:
    for path in BLOCKS:
        try:
            return hf.get_submodule(path)  # type: ignore[return-value]
        except AttributeError:
            continue
    raise AssertionError(type(hf))


def place(hf: PreTrainedModel) -> tuple[nn.Module, str]:
    """The last matrix of the second block, as its parent has it: what an MLP writes, or attention where it has none."""
    found = [
        (block, name)
        for block in blocks(hf)[1].modules()
        for name, child in block.named_children()
        if isinstance(child, nn.Linear | Conv1D)
    ]
    return found[-1]


def matrix(hf: PreTrainedModel) -> nn.Module:
    parent, name = place(hf)
    return getattr(parent, name)


def noise(like: Tensor, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(5)) * scale
    return (drawn * like.detach().float().std()).to(like.dtype)


def weight(hf: PreTrainedModel) -> Tensor:
    return matrix(hf).weight  # type: ignore[return-value]


def through_data(hf: PreTrainedModel) -> None:
    weight(hf).data.add_(noise(weight(hf)))


def through_numpy(hf: PreTrainedModel) -> None:
    changed = (weight(hf).detach() + noise(weight(hf))).contiguous()
    weight(hf).detach().contiguous().view(torch.uint8)
    weight(hf).detach().view(torch.uint8).numpy()[...] = changed.view(torch.uint8).numpy()


@torch.no_grad()
def copied_into(hf: PreTrainedModel) -> None:
    weight(hf).copy_(noise(weight(hf)))


@torch.no_grad()
def in_place(hf: PreTrainedModel) -> None:
    weight(hf).mul_(-1.5)


def exchanged_tensor(hf: PreTrainedModel) -> None:
    matrix(hf).weight = nn.Parameter(noise(weight(hf), 2.0), requires_grad=False)


def exchanged_data(hf: PreTrainedModel) -> None:
    weight(hf).data = noise(weight(hf), 2.0)


def every_weight_by_little(hf: PreTrainedModel) -> None:
    for block in blocks(hf):
        for part in block.modules():
            if isinstance(part, nn.Linear | Conv1D):
                part.weight.data.mul_(1.3)


def one_row(hf: PreTrainedModel) -> None:
    weight(hf).data[3] = 4.0


def one_column(hf: PreTrainedModel) -> None:
    weight(hf).data[:, 5] = 4.0


def norm_weight(hf: PreTrainedModel) -> None:
    norm = next(m for m in blocks(hf)[1].modules() if "norm" in type(m).__name__.lower() and hasattr(m, "weight"))
    norm.weight.data.mul_(-2.0)  # type: ignore[operator,union-attr]


def embedding(hf: PreTrainedModel) -> None:
    hf.get_input_embeddings().weight.data.mul_(-0.7)


def head(hf: PreTrainedModel) -> None:
    hf.get_output_embeddings().weight.data.neg_()


class Doubled(nn.Linear):
    """A layer that shares another's weight and computes otherwise."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return -2.0 * super().forward(input)


class DoubledConv(Conv1D):
    """The same of GPT-2's layers."""

    def forward(self, x: Tensor) -> Tensor:
        return -2.0 * super().forward(x)


def exchanged_module(hf: PreTrainedModel) -> None:
    parent, name = place(hf)
    old = getattr(parent, name)
    kind = Conv1D if isinstance(old, Conv1D) else nn.Linear
    new: nn.Module = kind(*old.weight.shape[::-1]).requires_grad_(False).eval()
    new.weight.data = noise(old.weight, 2.0)
    new.bias.data = noise(old.weight[0] if kind is Conv1D else old.weight[:, 0])
    setattr(parent, name, new.to(old.weight.dtype))


def subclass_of_shared_weight(hf: PreTrainedModel) -> None:
    parent, name = place(hf)
    old = getattr(parent, name)
    new = object.__new__(DoubledConv if isinstance(old, Conv1D) else Doubled)
    new.__dict__.update(old.__dict__)
    setattr(parent, name, new)


class Negated(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return -1.5 * x


def parametrized(hf: PreTrainedModel) -> None:
    parametrize.register_parametrization(matrix(hf), "weight", Negated())


def pruned(hf: PreTrainedModel) -> None:
    mask = (noise(weight(hf)) > 0).to(weight(hf).dtype)
    prune.custom_from_mask(matrix(hf), "weight", mask)


def activation(hf: PreTrainedModel) -> None:
    """The activation of the second block's MLP, wherever a family keeps it."""
    for part in blocks(hf)[1].modules():
        for name in ("act_fn", "act", "activation_fn", "gelu_impl"):
            if name in part._modules or name in part.__dict__:
                setattr(part, name, torch.nn.Tanh())
                return
    raise AssertionError(type(hf))


def epsilon(hf: PreTrainedModel) -> None:
    for part in hf.modules():
        for name in ("variance_epsilon", "eps", "norm_eps"):
            if isinstance(part.__dict__.get(name), float):
                setattr(part, name, 5.0)


def experts(hf: PreTrainedModel) -> None:
    """The matrices of experts, which are one parameter of three dimensions."""
    for parameter in blocks(hf)[1].parameters():
        if parameter.dim() == 3:
            parameter.data.add_(noise(parameter))


def wave(output: Any, scale: float = 3.0) -> Any:
    """What the hooks of these changes add to an output, at every column alike."""
    stream = output[0] if isinstance(output, tuple) else output
    added = stream + (scale * torch.sin(torch.arange(stream.shape[-1], dtype=torch.float32))).to(stream.dtype)
    return (added, *output[1:]) if isinstance(output, tuple) else added


def hook(find: Callable[[PreTrainedModel], nn.Module], scale: float = 3.0) -> Change:
    return lambda hf: find(hf).register_forward_hook(lambda _, __, output: wave(output, scale))


def pre_hook(find: Callable[[PreTrainedModel], nn.Module]) -> Change:
    return lambda hf: find(hf).register_forward_pre_hook(lambda _, args: (wave(args[0]), *args[1:]))


def own_forward(find: Callable[[PreTrainedModel], nn.Module]) -> Change:
    def change(hf: PreTrainedModel) -> None:
        module = find(hf)
        before = module.forward
        module.forward = lambda *args, **kwargs: wave(before(*args, **kwargs))

    return change


def attention(hf: PreTrainedModel) -> nn.Module:
    return next(m for m in blocks(hf)[1].modules() if "Attention" in type(m).__name__)


def block(hf: PreTrainedModel) -> nn.Module:
    return blocks(hf)[1]


def first_block(hf: PreTrainedModel) -> nn.Module:
    return blocks(hf)[0]


def whole_base(hf: PreTrainedModel) -> nn.Module:
    return hf.base_model


def last_column(_: nn.Module, __: Any, output: Any) -> Any:
    """Steers the last token of each pass alone: of the prompt, and each new one."""
    stream = (output[0] if isinstance(output, tuple) else output).clone()
    stream[:, -1] = wave(stream[:, -1])
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def prompt_only(_: nn.Module, __: Any, output: Any) -> Any:
    """Steers the prompt and no new token, as told by a pass's length."""
    return wave(output) if (output[0] if isinstance(output, tuple) else output).shape[1] > 1 else output


def third_column(_: nn.Module, __: Any, output: Any) -> Any:
    """Steers the third token of the text."""
    stream = output[0] if isinstance(output, tuple) else output
    if stream.shape[1] < 3:
        return output
    stream = stream.clone()
    stream[:, 2] = wave(stream[:, 2], 20.0)
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def registered(find: Callable[[PreTrainedModel], nn.Module], function: Any) -> Change:
    return lambda hf: find(hf).register_forward_hook(function)


def adapted(hf: PreTrainedModel) -> Any:
    """LoRA on the matrix, with an adapter that does something; the PEFT model, whose base is `hf`."""
    import peft

    parent, name = place(hf)
    path = next(path for path, module in hf.named_modules() if module is getattr(parent, name))
    config = peft.LoraConfig(
        r=4, target_modules=[path], task_type="CAUSAL_LM", fan_in_fan_out=isinstance(getattr(parent, name), Conv1D)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(hf, config).eval()
    for path, parameter in wrapped.named_parameters():
        if "lora_" in path:
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)).to(parameter.dtype)
            )
    return wrapped


def merged(hf: PreTrainedModel) -> None:
    lora(hf).merge()


def unmerged(hf: PreTrainedModel) -> None:
    lora(hf).unmerge()


def switched_off(hf: PreTrainedModel) -> None:
    lora(hf).enable_adapters(enabled=False)


def rescaled(hf: PreTrainedModel) -> None:
    lora(hf).scaling["default"] *= -3.0


def lora(hf: PreTrainedModel) -> Any:
    return next(m for m in hf.modules() if hasattr(m, "lora_A"))


EDITS: dict[str, Change] = {
    function.__name__: function
    for function in (
        through_data,
        through_numpy,
        copied_into,
        in_place,
        exchanged_tensor,
        exchanged_data,
        every_weight_by_little,
        one_row,
        one_column,
        norm_weight,
        embedding,
        head,
        exchanged_module,
        subclass_of_shared_weight,
        parametrized,
        pruned,
        activation,
        epsilon,
    )
}

HOOKED: dict[str, Change] = {
    "hook on a matrix": hook(matrix),
    "pre-hook on a matrix": pre_hook(matrix),
    "hook on attention": lambda hf: attention(hf).register_forward_hook(lambda _, __, output: wave(output)),
    "hook on a block": hook(block),
    "pre-hook on a block": pre_hook(block),
    "pre-hook on block 1": pre_hook(first_block),
    "hook on the embedding": hook(lambda hf: hf.get_input_embeddings()),
    "hook on the head": hook(lambda hf: hf.get_output_embeddings()),
    "own forward of a matrix": own_forward(matrix),
    "own forward of a block": own_forward(block),
    "last column of a block": registered(block, last_column),
    "prompt alone, of a block": registered(block, prompt_only),
    "third column of a matrix": registered(matrix, third_column),
    "third column of block 1": registered(first_block, third_column),
}

ADAPTERS: dict[str, Change] = {function.__name__: function for function in (merged, switched_off, rescaled)}

__all__ = ["ADAPTERS", "EDITS", "HOOKED", "adapted", "blocks", "experts", "partial", "unmerged"]
