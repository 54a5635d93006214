"""What a caller has attached to a model, and what that is for an identity: hooks, own forwards, adapters.

    hook       forward hooks and pre-hooks, of modules and of the whole process
    forward    a `forward` that was set on a module
    function   one that was put in the place of a function of transformers or torch that the model's forwards call
    module     a module of a class that is neither torch's, transformers', accelerate's nor a quantiser's
    attribute  beside any of these: tensors and objects of the caller's own that stand on modules, for them to read

Each is told by its place, its qualified name, and a hash of its code and of what it computes with (`hasher.py`).
"""

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel

from patchscopes.models.hasher import NOT_TOLD, Hasher, is_library
from patchscopes.models.tree import GLOBAL_HOOKS, HOOKS, own_forward
from patchscopes.models.watch import Named, collects, home_of, is_built_in, is_plain, walk

OURS = frozenset({"patchscopes", "torch", "accelerate"})
# What a library's own class is, and a caller's thing all the same.
HOLDERS = (Tensor, np.ndarray, list, dict, tuple)

What = Literal["hook", "forward", "function", "module", "attribute"]


@dataclass(frozen=True, slots=True)
class Attached:
    """One thing that is attached: its kind, its place (a module's path), its name, and its digest.

    `hashed` is False where the digest is good in this process only.
    """

    what: What
    path: str
    name: str
    digest: str
    hashed: bool

    def __str__(self) -> str:
        return f"{self.what} {self.name} on {self.path or 'the model'}"


def attached(hf: PreTrainedModel, named: Iterable[Named] = ()) -> tuple[Attached, ...]:
    """Return all that is attached to a model and is not ours, torch's or accelerate's, in the order of its modules.

    `named` are the functions that its forwards call, by the names that they stand in.
    """
    known = {module: path for path, module in walk(hf)}
    found = [_attached(what, path, thing, known) for what, path, thing in _all(hf, known, named)]
    if found:
        found += [_attribute(path, name, value, known) for path, name, value in _attributes(known)]
    return tuple(found)


def is_ours(function: Any) -> bool:
    """Return whether a hook is of this package, torch's or accelerate's own."""
    owner = _owner(function)
    package = owner.partition(".")[0]
    if package == "torch":  # masks of pruning, and what a partial holds, are the caller's
        return not isinstance(function, functools.partial) and not owner.startswith("torch.nn.utils")
    return package in OURS


def _owner(function: Any) -> str:
    """Return the module of a function, within partials and what torch.compile has made of it."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "_torchdynamo_orig_callable", function)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _all(
    hf: PreTrainedModel, known: Mapping[nn.Module, str], named: Iterable[Named]
) -> Iterator[tuple[What, str, Any]]:
    for table in GLOBAL_HOOKS:
        for hook in getattr(torch_module, table).values():
            if not is_ours(hook) and not collects(hook):
                yield "hook", "every module", hook
    for one in named:
        if _is_put_in(one.function) and not (isinstance(one.holder, type) and not is_library(one.holder.__module__)):
            yield "function", one.place, one.function
    for module, path in known.items():
        for name in HOOKS:
            for hook in module.__dict__[name].values():
                if not is_ours(hook) and not collects(hook):
                    yield "hook", path, hook
        if (forward := own_forward(module)) is not None and not _is_own_class_forward(forward, module):
            yield "forward", path, forward
        kind = type(module)
        for name, method in _methods(module):
            yield "function", f"{path}.{name}" if path else name, method
        if not is_built_in(kind) and (module is not hf or _is_put_in(kind.forward)):
            yield "module", path, module


def _methods(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what of the caller's stands on a module in the place of a method of its class, other than its forward."""
    for name, value in module.__dict__.items():
        if callable(value) and name != "forward" and hasattr(type(module), name) and _is_put_in(value):
            yield name, value


def _is_put_in(function: Any) -> bool:
    """Return whether a function that stands in a library's place is the caller's own."""
    while isinstance(function, functools.partial):
        function = function.func
    return not is_library(home_of(function)) or not is_library(str(getattr(function, "__module__", None) or "builtins"))


def _attributes(known: Mapping[nn.Module, str]) -> Iterator[tuple[str, str, Any]]:
    """Yield what of the caller's own stands on modules of libraries; plain values are watched, and modules are told."""
    for module, path in known.items():
        if not is_built_in(type(module)):
            continue
        for name, value in module.__dict__.items():
            # What torch's own hooks make anew at each call: `weight` of `weight_orig` and a mask, or of two parts.
            made = any(parameter.startswith(f"{name}_") for parameter in module._parameters)
            if made or name in NOT_TOLD or isinstance(value, nn.Module) or is_plain(value):
                continue
            if isinstance(value, HOLDERS) or not is_library(type(value).__module__):
                yield path, name, value


def _is_own_class_forward(forward: Any, module: nn.Module) -> bool:
    """Return whether it is accelerate's, or the class's own method as torch.compile or accelerate leaves it behind."""
    compiled = getattr(forward, "_torchdynamo_orig_callable", forward)
    if isinstance(compiled, types.MethodType):
        return compiled.__self__ is module and compiled.__func__ is type(module).forward
    return _owner(forward).partition(".")[0] in OURS - {"torch"}  # not so `forward = F.relu`


def _attached(what: What, path: str, thing: Any, known: Mapping[nn.Module, str]) -> Attached:
    hasher = Hasher(known)
    if what == "module":  # what of it is neither a parameter nor a child
        hasher.add(type(thing))
        hasher.attributes(thing)
    else:
        hasher.add(thing)
    return Attached(what, path, _name(thing), hasher.digest(), hasher.complete)


def _attribute(path: str, name: str, value: Any, known: Mapping[nn.Module, str]) -> Attached:
    return replace(_attached("attribute", path, value, known), name=name)


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"
