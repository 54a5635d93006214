"""What of a model runs otherwise than transformers has it, decided once per model and checked as it is decided."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from patchscopes import kernels
from patchscopes.compute import linear
from patchscopes.compute.blocks import mlp_function, norm_function, rotary_functions
from patchscopes.compute.head import Head
from patchscopes.models import Model, Replacements, Trees, calm, is_built_in, runs_alone


@dataclass(frozen=True)
class Compute:
    """The functions that stand in for a model's modules and for functions that they call, and its head in chunks."""

    model: Model
    head: Head
    trees: Trees
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    rotary: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, passes of this thread run a private tree of the model in which these functions stand in."""
        with self.trees.lent() as tree, self.model.run_by(tree):
            yield


def compute_of(model: Model) -> Compute:
    """The model's Compute, made at first use (0.2 s for 135M parameters) and again where the model has changed."""
    return model.kept(Compute, _make)


def plain_compute(model: Model) -> Compute:
    """A Compute in which nothing stands in for a module: all of them run themselves."""
    trees = model.trees(Replacements(attention=True))
    return Compute(model, Head(model, repack=False), trees)


@calm()
def _make(model: Model) -> Compute:
    if model.dtype != torch.float32 or model.device.type != "cpu" or not linear.available():
        return plain_compute(model)
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    repack = linear.room_to_repack(weights)
    parts = [part for block in model.blocks for part in block.modules()]
    replaceable = [part for part in (*parts, *_final(model)) if runs_alone(part) and _is_built_in(part)]
    linears = linear.linear_functions(replaceable, repack=repack)
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = dict(linears)
    rotary: dict[Callable[..., Any], Callable[..., Any]] = {}
    if kernels.native().library is not None:
        for part in replaceable:
            function = norm_function(part) or mlp_function(part, linears)
            if function is not None:
                forwards[part] = function
        rotary = rotary_functions(parts)
    trees = model.trees(Replacements(forwards, rotary, attention=True))
    return Compute(model, Head(model, repack=repack), trees, forwards, rotary)


def _is_built_in(part: nn.Module) -> bool:
    """Return whether a module and all within it are of classes that compute with what is watched."""
    return all(is_built_in(type(module)) for module in part.modules())


def _final(model: Model) -> list[nn.Module]:
    norm = model.final_norm
    return [] if norm is None else [norm]
