"""What a caller has attached to a model, and what that is for an identity: hooks, own forwards, adapters.

    hook       forward hooks and pre-hooks, of modules and of the whole process
    forward    a `forward` that was set on a module
    module     a module of a class that is neither torch's, transformers', accelerate's nor a quantiser's

Each is told by its module's path, its qualified name, its code, and a hash of the numbers, texts and tensors that it
closes over. What cannot be hashed is told by a token that only this process has.
"""

import functools
import hashlib
import types
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PretrainedConfig, PreTrainedModel

from patchscopes.models.tree import GLOBAL_HOOKS, HOOKS, own_forward
from patchscopes.models.watch import PLAIN, collects, walk

OURS = frozenset({"patchscopes", "torch", "accelerate"})
# Packages whose modules keep what they compute with in parameters, buffers and the config.
BUILT_IN = frozenset(
    {"torch", "transformers", "transformers_modules", "accelerate", "patchscopes", "bitsandbytes", "awq", "gptqmodel"}
    | {"auto_gptq", "optimum", "hqq", "torchao", "compressed_tensors", "quanto", "aqlm", "eetq", "kernels"}
)
MAX_DEPTH = 8
# More than a steering vector or a dictionary of features: what a recorder has gathered is not hashed at every call.
MAX_BYTES = 1 << 28
THIS_PROCESS = uuid.uuid4().hex

What = Literal["hook", "forward", "module"]


@dataclass(frozen=True, slots=True)
class Attached:
    """One thing that is attached: its kind, the path of its module, its name, and its digest.

    `hashed` is False where the digest is good in this process only.
    """

    what: What
    path: str
    name: str
    digest: str
    hashed: bool

    def __str__(self) -> str:
        return f"{self.what} {self.name} on {self.path or 'the model'}"


def attached(hf: PreTrainedModel) -> tuple[Attached, ...]:
    """Return all that is attached to a model and is not ours, torch's or accelerate's, in the order of its modules."""
    return tuple(_all(hf))


def is_ours(function: Any) -> bool:
    """Return whether a hook or forward is of this package, torch's or accelerate's own."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "_torchdynamo_orig_callable", function)
    owner = getattr(function, "__module__", None) or type(function).__module__
    package = str(owner).partition(".")[0]
    # Masks of pruning are torch's by their class, and the caller's by what they hold.
    return package in OURS and not str(owner).startswith("torch.nn.utils")


def _all(hf: PreTrainedModel) -> Iterator[Attached]:
    known = {module: path for path, module in walk(hf)}
    for name in GLOBAL_HOOKS:
        for hook in getattr(torch_module, name).values():
            if not is_ours(hook) and not collects(hook):
                yield _attached("hook", "every module", hook, known)
    for module, path in known.items():
        for table in HOOKS:
            for hook in module.__dict__[table].values():
                if not is_ours(hook) and not collects(hook):
                    yield _attached("hook", path, hook, known)
        if (forward := own_forward(module)) is not None and not _is_own_class_forward(forward, module):
            yield _attached("forward", path, forward, known)
        if type(module).__module__.partition(".")[0] not in BUILT_IN and module is not hf:
            yield _module(path, module, known)


def _is_own_class_forward(forward: Any, module: nn.Module) -> bool:
    """Return whether it is accelerate's, or the class's own method as torch.compile or accelerate leaves it behind."""
    compiled = getattr(forward, "_torchdynamo_orig_callable", forward)
    if isinstance(compiled, types.MethodType):
        return compiled.__self__ is module and compiled.__func__ is type(module).forward
    return is_ours(forward)


def _attached(what: What, path: str, function: Any, known: Mapping[nn.Module, str]) -> Attached:
    hasher = Hasher(known)
    hasher.add(function)
    return Attached(what, path, _name(function), hasher.digest(), hasher.complete)


def _module(path: str, module: nn.Module, known: Mapping[nn.Module, str]) -> Attached:
    """Return a module of the caller's class: what of its `__dict__` is neither a parameter nor a child."""
    hasher, kind = Hasher(known), type(module)
    hasher.add(kind)
    state = {name: value for name, value in module.__dict__.items() if not name.startswith("_") or name in _ADAPTERS}
    for name in sorted(state):
        if name != "training":
            hasher.add((name, state[name]))
    return Attached("module", path, f"{kind.__module__}.{kind.__qualname__}", hasher.digest(), hasher.complete)


# Of PEFT's layers: which adapters are active, and whether they are switched off.
_ADAPTERS = frozenset({"_disable_adapters", "_active_adapter"})


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


class Hasher:
    """A digest of numbers, texts, tensors, functions and what holds them; `complete` unless something else was met.

    Modules of `known` are the model's own, and told by their path.
    """

    def __init__(self, known: Mapping[nn.Module, str] = MappingProxyType({})) -> None:
        self._digest = hashlib.sha256()
        self._known = known
        self._open: set[int] = set()
        self._left = MAX_BYTES
        self.complete = True

    def digest(self) -> str:
        """Return the digest so far, in hex; one of this process alone where it is not complete."""
        token = b"" if self.complete else THIS_PROCESS.encode()
        return hashlib.sha256(self._digest.digest() + token).hexdigest()[:16]

    def add(self, value: Any, depth: int = 0) -> None:
        """Take a value into account."""
        if isinstance(value, PLAIN):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif id(value) in self._open:
            self._say("again")
        elif depth > MAX_DEPTH:
            self._unknown(value)
        else:
            self._open.add(id(value))
            self._add_whole(value, depth + 1)
            self._open.discard(id(value))

    def _add_whole(self, value: Any, depth: int) -> None:
        if isinstance(value, Mapping):
            self._say("mapping", len(value))
            self._several((part for item in value.items() for part in item), depth)
        elif isinstance(value, list | tuple):
            self._say("sequence", len(value))
            self._several(value, depth)
        elif isinstance(value, set | frozenset):
            self._say("set", *sorted(map(repr, value)))
        elif isinstance(value, functools.partial):
            self._say("partial")
            self._several((value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self._say("method")
            self._several((value.__func__, value.__self__), depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
            self._say("name", getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__))
        elif type(value).__module__ == "numpy":
            self._say("numpy", repr(getattr(value, "dtype", "")), getattr(value, "shape", ""))
            self._digest.update(value.tobytes()) if hasattr(value, "tobytes") else self._unknown(value)
        else:
            self._object(value, depth)

    def _object(self, value: Any, depth: int) -> None:
        """Take an object into account by its class and attributes; modules and configs of the model by their class."""
        self._say("object", type(value).__module__, type(value).__qualname__)
        if isinstance(value, nn.Module):
            if value in self._known:
                self._say(self._known[value])
            else:
                self._several(sorted(value.state_dict().items()), depth)
                self._several(((k, v) for k, v in sorted(vars(value).items()) if not k.startswith("_")), depth)
        elif isinstance(value, PretrainedConfig):
            return
        elif hasattr(value, "__dict__"):
            self._several(vars(value).items(), depth)
        else:
            self._unknown(value)

    def _function(self, value: types.FunctionType, depth: int) -> None:
        self._say("function", value.__module__, value.__qualname__)
        self._code(value.__code__)
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not yet assigned
                cells.append(None)
        self._several((*cells, value.__defaults__, value.__kwdefaults__), depth)
        named = {name: value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__}
        for name in sorted(named):
            self._say("global", name)
            # Functions and modules by their names alone: a caller's program is not followed whole.
            whole = not isinstance(named[name], types.FunctionType | types.ModuleType | type | nn.Module)
            if whole and isinstance(named[name], (*PLAIN, Tensor, list, tuple, dict)):
                self.add(named[name], depth)

    def _code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code)
        self._say(*code.co_names, *code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._say(repr(constant))

    def _tensor(self, value: Tensor) -> None:
        self._say("tensor", value.dtype, tuple(value.shape))
        self._left -= value.numel() * value.element_size()
        if value.device.type == "meta" or self._left < 0:
            self._unknown(value)
        elif value.numel():
            flat = value.detach().contiguous().cpu().reshape(-1)
            self._digest.update(flat.view(torch.uint8).numpy().data)

    def _several(self, values: Any, depth: int) -> None:
        for value in values:
            self.add(value, depth)

    def _say(self, *parts: object) -> None:
        self._digest.update("\x1f".join(map(str, parts)).encode() + b"\x1e")

    def _unknown(self, value: object) -> None:
        self.complete = False
        self._say("unknown", id(value))
