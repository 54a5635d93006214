"""What stands between the matrix products of a block: norms, gated MLPs, rotary embedding, by fused kernels.

Each is found by what it is made of and taken only where it gives the same as the module's own forward on random input.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchscopes import kernels
from patchscopes.compute.linear import LinearFunction, agrees
from patchscopes.kernels.ops import Activation

CLOSE = 1e-5
ROTARY = "apply_rotary_pos_emb"
# Named at every tensor, since a process may have other defaults.
PLAIN = {"dtype": torch.float32, "device": "cpu"}
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu")


def norm_function(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The kernel for an RMS norm, with its weight as it is (Llama) or one added (Gemma); None for anything else."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float) or any(module.children()):
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    x = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0), dtype=weight.dtype, device="cpu")
    x[2:] *= 1e-2  # where eps decides
    expected = module(x)
    for scale in (weight.detach(), 1.0 + weight.detach()):
        if torch.allclose(kernels.rms_norm(x, scale, eps), expected, rtol=CLOSE, atol=CLOSE):
            return partial(_norm, scale.contiguous(), eps)
    return None


def _norm(scale: Tensor, eps: float, x: Tensor) -> Tensor:
    return kernels.rms_norm(x if x.is_contiguous() else x.contiguous(), scale, eps)


def mlp_function(module: nn.Module, linears: Mapping[nn.Module, LinearFunction]) -> Callable[[Tensor], Tensor] | None:
    """down(act(gate(x)) · up(x)) for a gated MLP of packed linears; None for anything else."""
    parts = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    gate, up, down = (linears.get(part) if isinstance(part, nn.Module) else None for part in parts)
    if gate is None or up is None or down is None:
        return None
    d_in = module.get_parameter("gate_proj.weight").shape[1]
    for activation in ACTIVATIONS:
        function = partial(_mlp, gate, up, down, activation)
        try:
            if agrees(module, function, d_in):
                return function
        except (TypeError, ValueError, RuntimeError):  # it takes, or gives, something else
            return None
    return None


def _mlp(gate: LinearFunction, up: LinearFunction, down: LinearFunction, activation: Activation, x: Tensor) -> Tensor:
    return down(kernels.gated(gate(x), up(x), activation))


def rotary_functions(parts: Iterable[nn.Module]) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what stands in for each `apply_rotary_pos_emb` of the blocks that the kernel gives the same as."""
    modules = {sys.modules[type(part).__module__] for part in parts}
    found = {original for module in modules if callable(original := getattr(module, ROTARY, None))}
    return {original: _Rotary(original) for original in found if _turns_halves(original)}


def _turns_halves(original: Callable[..., Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(2, 3, n_heads, 16, generator=generator, **PLAIN).transpose(1, 2)  # type: ignore[call-overload]
        for n_heads in (4, 2)
    )
    cos, sin = torch.randn(2, 2, 3, 16, generator=generator, **PLAIN)  # type: ignore[call-overload]
    try:
        expected = original(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    found = _rotated(q, cos, sin), _rotated(k, cos, sin)
    return all(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE) for a, b in zip(found, expected, strict=True))


@dataclass(frozen=True, slots=True)
class _Rotary:
    """Rotates q and k by our kernel where it can, as the original does where it cannot."""

    original: Callable[..., Any]

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **options: Any) -> Any:
        if rest or options or cos.dim() != 3 or cos.shape[-1] != q.shape[-1] or q.dtype != torch.float32:
            return self.original(q, k, cos, sin, *rest, **options)
        return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The heads x (row, head, column, d), as attention has it: a transposed view of (row, column, head, d)."""
    rows, heads, columns, d = x.shape
    lines = x.transpose(1, 2).reshape(rows * columns, heads, d)
    if cos.shape[0] != rows and columns > 1:
        cos, sin = cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)
    angles = cos.reshape(-1, d), sin.reshape(-1, d)
    return kernels.rotary(lines, *angles).view(rows, columns, heads, d).transpose(1, 2)
