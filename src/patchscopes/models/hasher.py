"""A digest of whatever a hook, a forward or a module of the caller's computes with: the same in every process.

Numbers, texts, tensors, containers, functions, classes and objects are followed through closures, defaults, attributes
and the globals that code names, as far as the caller's own code goes: libraries are told by name. What cannot be
followed (a counter in C, a file, a generator) leaves the digest incomplete, and then it is good in this process only.
"""

import copyreg
import functools
import hashlib
import logging
import marshal
import sys
import sysconfig
import types
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from patchscopes.models.probes import Probes
from patchscopes.models.watch import BUILT_IN, HOOK_TABLES, PLAIN, home_of, names_in

MAX_DEPTH = 40
# More than a steering vector or a dictionary of features: what a recorder has gathered is not hashed at every call.
MAX_BYTES = 1 << 28
# A tensor above this is hashed once, and then looked at by samples.
LARGE_BYTES = 1 << 22
# Beyond so many parts a thing is not followed, and a long list is hashed at once.
MAX_PARTS, LONG = 50_000, 256
THIS_PROCESS = uuid.uuid4().hex
BY_NAME = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc, logging.Logger)
# Code that names one of these looks things up by texts.
BY_TEXT = frozenset({"globals", "eval", "exec", "environ", "getenv", "import_module"})
# Of a class's `__dict__`, what says nothing of what it computes.
BY_THE_CLASS = (types.MemberDescriptorType, types.GetSetDescriptorType)
OWN = frozenset({*HOOK_TABLES, "_parameters", "_buffers", "_modules"})


@functools.lru_cache(maxsize=4096)
def is_library(module: str) -> bool:
    """Return whether a module is Python's, installed, or of this package: its code is told by its name."""
    if module.partition(".")[0] in {*BUILT_IN, *sys.stdlib_module_names} - {"__main__"}:
        return True
    found = sys.modules.get(module)
    path = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if path is None:  # a notebook's, or made by hand; else Python's own
        return found is not None and getattr(found, "__spec__", None) is not None and module != "__main__"
    installed = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(path).is_relative_to(root) for root in installed) or "-packages" in str(path)


class Hasher:
    """A digest of numbers, texts, tensors, functions and what holds them; `complete` unless something else was met.

    Modules of `known` are the model's own, and told by their path. What is met again is told by when it was met first.
    """

    def __init__(self, known: Mapping[nn.Module, str] = MappingProxyType({})) -> None:
        self._digest = hashlib.sha256()
        self._known = known
        self._met: dict[int, tuple[int, object]] = {}  # the objects too: an id is another's once its object is gone
        self._left, self._parts = MAX_BYTES, MAX_PARTS
        self.complete = True

    def digest(self) -> str:
        """Return the digest so far, in hex; one of this process alone where it is not complete."""
        token = b"" if self.complete else THIS_PROCESS.encode()
        return hashlib.sha256(self._digest.digest() + token).hexdigest()[:16]

    def add(self, value: Any, depth: int = 0) -> None:
        """Take a value into account."""
        self._parts -= 1
        if type(value) in PLAIN:
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
            if type(value) not in (Tensor, nn.Parameter):
                self.add(type(value), depth + 1)
            if vars(value):
                self.add(vars(value), depth + 1)
        elif id(value) in self._met:
            self._say("again", self._met[id(value)][0])
        elif depth > MAX_DEPTH or self._parts < 0:
            self._unknown(value)
        else:
            self._met[id(value)] = len(self._met), value
            try:
                self._add_whole(value, depth + 1)
            except Exception:  # noqa: BLE001 (a caller's object may raise whatever it likes when it is looked at)
                self._unknown(value)

    def _add_whole(self, value: Any, depth: int) -> None:
        if type(value) in (dict, types.MappingProxyType):
            self._say("mapping", len(value))
            self._several((part for item in value.items() for part in item), depth)
        elif type(value) in (list, tuple, torch.Size):
            self._sequence(value, depth)
        elif type(value) in (set, frozenset):
            self._say("set", *self._sorted(value, depth))
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, types.ModuleType):
            self._python_module(value, depth)
        elif isinstance(value, BY_NAME):
            named = (getattr(value, name, None) for name in ("__qualname__", "__name__", "name"))
            self._say("name", getattr(value, "__module__", ""), next(filter(None, named)))
            self.add(getattr(value, "__self__", None) if isinstance(value, types.BuiltinFunctionType) else None, depth)
        elif type(value).__module__ == "numpy":
            self._numpy(value)
        else:
            self._holder(value, depth)

    def _holder(self, value: Any, depth: int) -> None:
        """Take something into account that is known by what it holds."""
        if isinstance(value, functools.partial):
            self._say("partial")
            self._several((value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self._say("method")
            self._several((value.__func__, value.__self__), depth)
        elif isinstance(value, staticmethod | classmethod):
            self._say("method of the class")
            self.add(value.__func__, depth)
        elif isinstance(value, property):
            self._say("property")
            self._several((value.fget, value.fset), depth)
        elif isinstance(value, weakref.ref):
            self._say("reference")
            self.add(value(), depth)
        elif isinstance(value, range | slice):
            self._say(repr(value))
        elif callable(wrapped := getattr(type(value), "cache_info", None) and getattr(value, "__wrapped__", None)):
            self._say("cached")
            self.add(wrapped, depth)
        else:
            self._object(value, depth)

    def _object(self, value: Any, depth: int) -> None:
        """Take an object into account by its class and state; modules of the model by their path."""
        if isinstance(value, nn.Module):
            if value in self._known:
                self._say("module", self._known[value])
            else:
                self.add(type(value), depth)
                self._module(value, depth)
        elif isinstance(value, PretrainedConfig):
            self._say("config", type(value).__qualname__)
            self.add(value.to_dict(), depth)
        elif isinstance(value, PreTrainedTokenizerBase):
            self._say("tokenizer", type(value).__qualname__, value.name_or_path, len(value))
        elif type(value).__module__ == "patchscopes.models.model":
            self._say("model", type(value).__qualname__)
        elif isinstance(value, Iterator):  # it is another at each call
            self._unknown(value)
        else:
            self._state(value, depth)

    def _state(self, value: Any, depth: int) -> None:
        """Take an object into account by what copies of it are made from, as its class says; it may refuse."""
        made = value.__reduce_ex__(4)
        if isinstance(made, str):
            self._say("global", type(value).__module__, made)
            return
        function, arguments, *state = made
        self.add(type(value), depth)
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            self.add(function, depth)
        self.add(arguments, depth)
        self._several((part if k == 0 or part is None else list(part) for k, part in enumerate(state[:3])), depth)

    def _module(self, value: nn.Module, depth: int) -> None:
        """Take a module into account that is not of the model: its tensors, children, hooks and attributes."""
        tables = (value._parameters, value._buffers, value._modules, value._forward_hooks, value._forward_pre_hooks)
        for table in tables:
            self._several((list(table) if table and isinstance(next(iter(table)), str) else [], *table.values()), depth)
        self.attributes(value, depth)

    def attributes(self, module: nn.Module, depth: int = 0) -> None:
        """Take into account what stands in a module's `__dict__` beside tensors, children and hooks."""
        for name in sorted(module.__dict__):
            value = module.__dict__[name]
            if name in NOT_TOLD or (name.startswith("_") and name.endswith(("hooks", "hooks_with_kwargs"))):
                continue
            self._several((name, value), depth)

    def _sequence(self, value: Any, depth: int) -> None:
        if type(value) in (list, tuple) and len(value) > LONG:
            with suppress(ValueError):  # something in it that is neither a number nor a text
                self._digest.update(marshal.dumps(value, 2))
                return
        self._say("sequence", len(value))
        self._several(value, depth)

    def _function(self, value: types.FunctionType, depth: int) -> None:
        home = home_of(value)
        self._say("function", home, value.__qualname__)
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not yet assigned
                cells.append(None)
        self._several((*cells, value.__defaults__, value.__kwdefaults__, vars(value)), depth)
        if is_library(home):
            return
        self._code(value.__code__, depth)
        names = frozenset(names_in(value.__code__))
        if names & BY_TEXT:  # what it looks up is not told by its code
            self._unknown(value)
        places: list[dict[str, Any]] = [value.__globals__]
        modules = [sys.modules[name] for name in sorted(names & sys.modules.keys())]
        modules += [cell for cell in cells if isinstance(cell, types.ModuleType)]
        places += [vars(module) for module in modules if not is_library(module.__name__)]
        for place in places:
            for name in sorted(names & place.keys()):
                found = place[name]
                self._say("global", name)
                if isinstance(found, types.ModuleType) and not is_library(found.__name__):
                    places += [] if any(vars(found) is one for one in places) else [vars(found)]
                else:
                    self.add(found, depth)

    def _python_module(self, value: types.ModuleType, depth: int) -> None:
        """Take a module of the caller's into account by the values that stand in it; a library by its name."""
        self._say("name", value.__name__)
        if not is_library(value.__name__):
            for name, found in sorted(vars(value).items()):
                if not name.startswith("__") and isinstance(found, (*PLAIN, Tensor, np.ndarray, list, tuple, dict)):
                    self._several((name, found), depth)

    def _class(self, value: type, depth: int) -> None:
        self._say("class", value.__module__, value.__qualname__)
        for base in value.__mro__:
            self._say(base.__module__, base.__qualname__)
            if is_library(base.__module__):
                continue
            for name, part in sorted(vars(base).items()):
                hidden = name.startswith(("_abc_", "__")) and not isinstance(part, types.FunctionType)
                if not hidden and not isinstance(part, BY_THE_CLASS):
                    self._several((name, part), depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        self._digest.update(code.co_code)
        self._say(*code.co_names, *code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, depth)
            else:
                self.add(constant, depth)

    def _tensor(self, value: Tensor) -> None:
        self._say("tensor", value.dtype, value.layout)
        try:
            self._say(tuple(value.shape))
            self._left -= value.numel() * value.element_size()
            if value.device.type == "meta" or self._left < 0:
                self._unknown(value)
                return
            self._digest.update(_bytes_digest(value))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # nested, quantised, of a subclass
            self._unknown(value)

    def _numpy(self, value: Any) -> None:
        dtype = getattr(value, "dtype", None)
        self._say("numpy", repr(dtype), getattr(value, "shape", ""))
        if dtype is None or dtype.hasobject or not hasattr(value, "tobytes"):
            self._unknown(value)
        else:
            self._digest.update(value.tobytes())

    def _sorted(self, values: Iterable[Any], depth: int) -> list[str]:
        """Return the digests of things that have no order."""
        found = []
        for value in values:
            hasher = Hasher(self._known)
            hasher.add(value, depth)
            self.complete &= hasher.complete
            found.append(hasher.digest())
        return sorted(found)

    def _several(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.add(value, depth)

    def _say(self, *parts: object) -> None:
        self._digest.update("\x1f".join(map(str, parts)).encode() + b"\x1e")

    def _unknown(self, value: object) -> None:
        self.complete = False
        self._say("unknown", id(value))


# Of a module's `__dict__`: what is told elsewhere, or is torch's and transformers' own.
NOT_TOLD = OWN | {
    *("training", "forward", "config", "generation_config", "_hf_hook", "_old_forward", "_is_hf_initialized"),
    *("_non_persistent_buffers_set", "_output_capturing_hooks_installed", "_is_full_backward_hook"),
    *("_is_torch_compile", "_compiled_call_impl"),
}


class _Large:
    """Digests of large tensors, kept for as long as samples of them are what they were."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], Any, Probes, bytes]] = {}

    def digest(self, tensor: Tensor) -> bytes:
        """Return the digest of a tensor's bytes."""
        mark = (tensor.data_ptr(), tensor.is_inference() or tensor._version, tensor.shape, tensor.stride())
        known = self._found.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == mark and next(known[2].changes(), None) is None:
            return known[3]
        digest = hashlib.sha256(_bytes_of(tensor)).digest()
        self._found = {key: one for key, one in self._found.items() if one[0]() is not None}
        self._found[id(tensor)] = weakref.ref(tensor), mark, Probes({"": tensor}), digest
        return digest


_large = _Large()


def _bytes_digest(tensor: Tensor) -> bytes:
    large = tensor.numel() * tensor.element_size() > LARGE_BYTES and tensor.layout == torch.strided
    return _large.digest(tensor) if large else hashlib.sha256(_bytes_of(tensor)).digest()


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().resolve_conj().resolve_neg()
    flat = (flat if flat.layout == torch.strided else flat.to_dense()).contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data
