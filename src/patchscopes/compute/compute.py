"""What of a model runs otherwise than transformers has it, decided once per model and checked as it is decided."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from patchscopes import kernels
from patchscopes.compute import linear
from patchscopes.compute.blocks import mlp_function, norm_function, rotary_installed, rotary_places
from patchscopes.compute.head import Head
from patchscopes.hooks import replaced
from patchscopes.models import Model


@dataclass(frozen=True)
class Compute:
    """The functions that stand in for a model's modules, and its head in chunks.

    `stamp` tells the weights that they were made from: in-place changes and exchanged tensors show in it.
    """

    model: Model
    head: Head
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    rotary: list[Any] = field(default_factory=list)
    stamp: tuple[tuple[int, int], ...] = ()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, the model runs by these functions."""
        with ExitStack() as stack:
            stack.enter_context(replaced(self.forwards))
            stack.enter_context(rotary_installed(self.rotary))
            yield


def compute_of(model: Model) -> Compute:
    """The model's Compute, made at first use (0.2 s for 135M parameters) and again where weights have changed."""
    compute = model.kept(Compute, _make)
    if compute.stamp != _stamp(model):
        compute = _make(model)
        model.keep(compute)
    return compute


def _stamp(model: Model) -> tuple[tuple[int, int], ...]:
    return tuple((p.data_ptr(), p._version) for p in model.hf.parameters())


@torch.no_grad()
def _make(model: Model) -> Compute:
    stamp = _stamp(model)
    plain = model.dtype != torch.float32 or model.device.type != "cpu" or not linear.available()
    if plain:
        return Compute(model, Head(model, repack=False), stamp=stamp)
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    repack = linear.room_to_repack(weights)
    parts = [part for block in model.blocks for part in block.modules()]
    linears = linear.linear_functions(parts, repack=repack)
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = dict(linears)
    rotary: list[Any] = []
    if kernels.native().library is not None:
        for part in (*parts, *_final(model)):
            function = norm_function(part) or mlp_function(part, linears)
            if function is not None:
                forwards[part] = function
        rotary = rotary_places(model.blocks)
    return Compute(model, Head(model, repack=repack), forwards, rotary, stamp)


def _final(model: Model) -> list[nn.Module]:
    norm = model.final_norm
    return [] if norm is None else [norm]
