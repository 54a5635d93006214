"""What a model is at one moment, and whether it still is that: the structure of its modules, samples of its weights.

    structure   per module its class, hooks, own forward, children, parametrizations, `training` and plain attributes;
                per tensor identity, pointer, version, shape, strides, dtype; the functions and configs that runs use
    content     of every tensor at least one value of each row and each column, other ones at each look

Structure sees whatever goes through Python. Content sees what does not: `.data`, NumPy views, other processes. A value
that is changed alone may lie between the samples: docs/reliability.md says what that means, and `Model.refresh()` looks
at everything anew.
"""

import inspect
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from patchscopes.models.probes import Probes
from patchscopes.models.tree import GLOBAL_HOOKS, callers_modes, grows, runs_users_code, unwrapped

TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
HOOK_TABLES = frozenset(name for name in TABLES if "hooks" in name)
# Of every module, whatever it does while it runs.
ALWAYS = frozenset({*TABLES, "training", "forward", "_hf_hook"})
# What transformers and torch.compile note on modules for themselves.
NOTES = frozenset(
    {"_is_hf_initialized", "_output_capturing_hooks_installed", "_is_torch_compile", "_compiled_call_impl"}
)
# Packages whose modules keep what they compute with in parameters, buffers, plain attributes and the config.
BUILT_IN = frozenset(
    {"torch", "transformers", "transformers_modules", "accelerate", "patchscopes", "bitsandbytes", "awq", "gptqmodel"}
    | {"auto_gptq", "optimum", "hqq", "torchao", "compressed_tensors", "quanto", "aqlm", "eetq", "kernels"}
)
# Packages in which functions that a forward calls are looked up.
FOLLOWED = frozenset({"torch", "transformers"})
# Methods of a module's class that run when it is called.
CALLS = ("forward", "__call__", "_call_impl")
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once, with its path; what torch.compile has wrapped, without the wrapping."""
    seen: set[nn.Module] = set()
    left = [(path, unwrapped(module))]
    while left:
        here, found = left.pop()
        if found in seen:
            continue
        seen.add(found)
        yield here, found
        children = [(name, child) for name, child in found._modules.items() if child is not None]
        left += [(f"{here}.{name}" if here else name, unwrapped(child)) for name, child in reversed(children)]


def offloaded(module: nn.Module) -> Mapping[str, Tensor] | None:
    """Return the weights that accelerate brings when the module runs, as far as they are in memory; None for none."""
    maps = [hook.weights_map for hook in _accelerate(module) if getattr(hook, "offload", False)]
    if not maps:
        return None
    found: dict[str, Tensor] = {}
    for weights in maps:
        names = [*module._parameters, *module._buffers]
        held = getattr(weights, "dataset", {})
        held = held if isinstance(held, dict) else getattr(held, "state_dict", {})
        prefix = getattr(weights, "prefix", "")
        found |= {name: held[prefix + name] for name in names if isinstance(held.get(prefix + name), Tensor)}
    return found


def brought_to(module: nn.Module) -> torch.device:
    """Return the device that accelerate brings a module's weights to when it runs; `meta` where nothing brings them."""
    devices = [hook.execution_device for hook in _accelerate(module) if getattr(hook, "offload", False)]
    return torch.device(devices[0]) if devices else torch.device("meta")


def _accelerate(module: nn.Module) -> tuple[Any, ...]:
    hook = module.__dict__.get("_hf_hook")
    return tuple(getattr(hook, "hooks", (hook,)))


def tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer once, with its path; those that lengths grow left out."""
    seen: set[int] = set()
    for path, module in walk(hf):
        brought = offloaded(module) or {}
        own = (*module._parameters.items(), *(() if grows(module) else module._buffers.items()))
        for name, there in own:
            tensor = brought.get(name, there)
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor


def frozen(value: Any) -> Any:
    """Return a copy of lists, dicts and sets, however deep, so that they are not changed in place with the original."""
    if isinstance(value, dict):
        return {key: frozen(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(map(frozen, value)) if type(value) in (list, tuple, set, frozenset) else value
    return value


def is_plain(value: Any) -> bool:
    """Return whether it is a number, a text, or a container of such: what `frozen` copies whole."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN)


Kind = Literal["weights", "hooks", "structure"]
# Which attributes of modules are compared. While a model runs, a hook may set some, on its own module or on others.
Attributes = Literal["all", "unhooked", "none"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs: what it is of, and in words."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """A module as it was: its class, and the values of its `__dict__`, tables and containers copied."""

    path: str
    module: nn.Module
    kind: type[nn.Module]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """A function, and where code finds it: by a name in a module's globals, in a registry, or on a class."""

    holder: Mapping[str, Any] | type
    name: str
    function: Any

    @property
    def now(self) -> Any:
        """Return what the name refers to now."""
        if isinstance(self.holder, type):
            return getattr(self.holder, self.name, None)
        return self.holder.get(self.name)

    @property
    def place(self) -> str:
        """The whole name, such as "torch.nn.functional.silu"."""
        if isinstance(self.holder, type):
            return f"{self.holder.__qualname__}.{self.name}"
        return f"{self.holder.get('__name__') or type(self.holder).__name__}.{self.name}"


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A tensor as it was, but for its content."""

    path: str
    tensor: Tensor
    stamp: tuple[Any, ...]
    versioned: bool


class Watch:
    """A model as it is when this is made. Making it reads some of every weight; `changes` takes a millisecond."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf = hf
        self._seen = [
            _Seen(path, module, type(module), {name: frozen(value) for name, value in module.__dict__.items()})
            for path, module in walk(hf)
        ]
        self.training = [seen.path or "the model" for seen in self._seen if _trains(seen.module)]
        found = dict(tensors(hf)) | dict(loose_tensors(hf))
        rewritten = set(map(id, _rewritten(self._seen)))
        self._stamps = [
            _Stamp(path, tensor, _stamp(tensor, versioned=versioned), versioned)
            for path, tensor in found.items()
            for versioned in [id(tensor) not in rewritten]
        ]
        self._configs = list({id(c): (c, frozen(vars(c))) for c in _configs(self._seen)}.values())
        kinds = dict.fromkeys(seen.kind for seen in self._seen)
        interfaces = [*_interfaces(config for config, _ in self._configs), *_of_caches()]
        self.functions = list(_functions(kinds, interfaces))
        self._settings = _settings()
        self.probes = Probes(found)
        self.look_s = 0.0

    def changes(self, *, content: bool = True, attributes: Attributes = "all") -> list[Change]:
        """Return what differs by now; nothing where nothing does, of `attributes` those that are asked for."""
        start = time.perf_counter()
        found = [*self._structure(attributes=attributes), *self._tensors()]
        if content and not any(change.kind == "weights" for change in found):  # else pointers may be of other memory
            found += [Change("weights", text) for text in self.probes.changes()]
        self.look_s = time.perf_counter() - start
        return found

    def hashed_changes(self) -> list[Change]:
        """Return which tensors differ anywhere from what they were when this was asked first."""
        return [Change("weights", text) for text in self.probes.hash_changes()]

    def describe(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield path, class and plain attributes of every module as it was: what its structure decides."""
        for seen in self._seen:
            plain = {name: value for name, value in seen.values.items() if _says(name, value, seen)}
            yield seen.path, f"{seen.kind.__module__}.{seen.kind.__qualname__}", plain

    def _structure(self, *, attributes: Attributes) -> Iterator[Change]:
        for seen in self._seen:
            if type(seen.module) is not seen.kind:
                yield Change("structure", f"{seen.path or 'the model'} is now a {type(seen.module).__name__}")
            elif not _same(seen.module.__dict__, seen.values):
                yield from _differences(seen, attributes=attributes)
        for one in self.functions:
            if one.now is not one.function:
                yield Change("structure", f"{one.place} was replaced")
        for config, values in self._configs:
            if not _same(vars(config), values):
                for name in {**values, **vars(config)}:
                    if not _equal(vars(config), values, name):
                        yield Change("structure", f"config.{name} is now {vars(config).get(name)!r}")
        if _settings() != self._settings:
            yield Change("hooks", "PyTorch's precision settings or global module hooks changed")

    def _tensors(self) -> Iterator[Change]:
        for seen in self._stamps:
            if _stamp(seen.tensor, versioned=seen.versioned) != seen.stamp:
                yield Change("weights", f"{seen.path} was written to or exchanged")


def home_of(function: Any) -> str:
    """Return the module that a function's code is of: a wrapper may carry another's name."""
    found = getattr(function, "__globals__", None)
    return str((found or {}).get("__name__") or getattr(function, "__module__", None) or type(function).__module__)


def _trains(module: nn.Module) -> bool:
    """Return whether a module is in training mode and may depend on it: transformers' own, and what asks for the mode.

    A plain layer that was put in or parametrized is in training mode by default, which means nothing to it.
    """
    kind = type(module)
    return module.training and (kind.__module__.startswith("transformers") or _asks_for_mode(kind))


def _asks_for_mode(kind: type[nn.Module]) -> bool:
    """Return whether code of a class names `training`: its forward, and of a caller's class whatever it calls."""
    left: list[Any] = [kind.forward]
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            break
        left += [value for value in vars(base).values() if isinstance(value, types.FunctionType)]
    seen: set[types.FunctionType] = set()
    while left:
        function = inspect.unwrap(left.pop())
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        names = set(names_in(function.__code__))
        if "training" in names:
            return True
        if not home_of(function).startswith(("torch.", "transformers.")):
            left += [function.__globals__[name] for name in names & function.__globals__.keys()]
    return False


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code and the functions in it look up, attributes among them."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return (*code.co_names, *(name for part in inner for name in names_in(part)))


def is_built_in(kind: type[nn.Module]) -> bool:
    """Return whether a class is of a package whose modules keep what they compute with where it is watched."""
    return kind.__module__.partition(".")[0] in BUILT_IN


def loose_tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that stand on modules as plain attributes, where no code of a caller's may have put them there."""
    for path, module in walk(hf):
        if is_built_in(type(module)) and not runs_users_code(module):
            for name, value in module.__dict__.items():
                if isinstance(value, Tensor):
                    yield (f"{path}.{name}" if path else name), value


def _rewritten(seen: Iterable[_Seen]) -> Iterator[Tensor]:
    """Yield the parameters (of experts) that peft parametrizes anew at each call, which counts as a write to them."""
    for one in seen:
        if one.kind.__name__ == "ParamWrapper" and one.kind.__module__.startswith("peft."):
            wrapper: Any = one.module
            yield wrapper.get_param()


def _stamp(tensor: Tensor, *, versioned: bool) -> tuple[Any, ...]:
    """Return pointer, version, shape, strides, dtype and device; tensors of inference mode have no version."""
    version = tensor._version if versioned and not tensor.is_inference() else 0
    try:
        pointer = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a subclass without storage of its own
        pointer = 0
    return pointer, version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Return whether two mappings are equal; False where that cannot be told, as of two tensors."""
    try:
        return bool(now == before)
    except (RuntimeError, TypeError, ValueError):
        return False


def _equal(now: Mapping[str, Any], before: Mapping[str, Any], name: str) -> bool:
    return name in now and name in before and _same({"": now[name]}, {"": before[name]})


def collects(hook: Any) -> bool:
    """Return whether it is a collector that transformers leaves once hidden states were asked for."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _is_of_a_run(hook: Any) -> bool:
    """Return whether it is a hook of ours, which stands on the caller's modules while a thread runs them."""
    return type(hook).__module__.startswith("patchscopes.")


def _hooks(table: Mapping[int, Any]) -> list[tuple[int, Any]]:
    return [(key, hook) for key, hook in table.items() if not (collects(hook) or _is_of_a_run(hook))]


def _differences(seen: _Seen, *, attributes: Attributes) -> Iterator[Change]:
    """Yield what of a module's `__dict__` decides and differs."""
    now, before, place = seen.module.__dict__, seen.values, seen.path or "the model"
    users = runs_users_code(seen.module)
    free = grows(seen.module) or attributes == "none" or (attributes == "unhooked" and users)
    users = users or not is_built_in(seen.kind)
    brought = offloaded(seen.module) is not None
    for name in {**before, **now}:
        if _equal(now, before, name):
            continue
        if name == "training":
            yield Change("structure", f"{place}.training is now {now.get(name)}")
        elif name in HOOK_TABLES:
            if name.endswith("kwargs") or _hooks(now[name]) == _hooks(before[name]):
                continue  # keys of hooks, which are compared themselves
            yield Change("hooks", f"hooks of {place} changed")
        elif name == "forward":
            yield Change("hooks", f"{place} has another forward")
        elif name in ("_parameters", "_buffers"):
            if not brought and not (name == "_buffers" and grows(seen.module)):
                yield Change("weights", f"{place}.{_first_difference(now[name], before[name])} was exchanged")
        elif name == "_modules":
            yield from _other_modules(place, now[name], before[name])
        elif name in ALWAYS or not (name in NOTES or free or (users and not _tells(now.get(name), before.get(name)))):
            yield Change("structure", f"{place}.{name} changed")


def _other_modules(place: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[Change]:
    """Yield what an exchange of children changes: weights too, unless torch.compile has only wrapped them."""
    inner = [{name: c if c is None else unwrapped(c) for name, c in children.items()} for children in (now, before)]
    text = f"{place}.{_first_difference(now, before)} is another module"
    if _same(*inner):
        yield Change("hooks", text)
    else:
        yield Change("structure", text)
        yield Change("weights", text)


def _first_difference(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return next((name for name in {**before, **now} if now.get(name) is not before.get(name)), "their order")


def _says(name: str, value: Any, seen: _Seen) -> bool:
    """Return whether an attribute is told where a structure is described."""
    if name in ALWAYS or name in NOTES:
        return False
    arrays = isinstance(value, Tensor | np.ndarray | np.generic)
    return _tells(value) or (arrays and is_built_in(seen.kind) and not runs_users_code(seen.module))


def _tells(*values: Any) -> bool:
    """Return whether attributes are numbers, texts and functions: all else of a caller's code is told by its digest."""
    return all(is_plain(value) or callable(value) for value in values)


def _functions(kinds: Iterable[type[nn.Module]], interfaces: Iterable[Named]) -> Iterator[Named]:
    """Yield the classes' forwards, the functions that these and the interfaces call by name, and so on, each once.

    Functions of torch's are not followed: what they call is not exchanged by itself.
    """
    left = [*interfaces, *(Named(kind, name, getattr(kind, name)) for kind in kinds for name in CALLS)]
    seen = {(id(one.holder), one.name) for one in left}
    while left:
        yield (one := left.pop())
        function = one.function
        while isinstance(function, types.FunctionType):
            if not home_of(function).startswith("torch") or isinstance(one.holder, type):
                for holder, name in _named_by(function, one.holder):
                    if (id(holder), name) not in seen:
                        seen.add((id(holder), name))
                        named = Named(holder, name, None)
                        left.append(replace(named, function=named.now))
            function = getattr(function, "__wrapped__", None)


def _named_by(function: types.FunctionType, holder: object) -> Iterator[tuple[Mapping[str, Any] | type, str]]:
    """Yield each place that code finds a function in: its globals, modules such as torch.nn.functional, its class."""
    names = function.__code__.co_names
    places = [function.__globals__]
    for where in places:
        for name in names:
            found = where.get(name)
            if isinstance(found, types.ModuleType):
                if found.__name__.partition(".")[0] in FOLLOWED and not any(vars(found) is place for place in places):
                    places.append(vars(found))
            elif isinstance(found, type):
                if issubclass(found, torch.autograd.Function):
                    yield found, "forward"
            elif callable(found):
                yield where, name
    if isinstance(holder, type):
        methods = {name: getattr(holder, name, None) for name in names}
        for name, method in methods.items():
            if isinstance(method, types.FunctionType) and not home_of(method).startswith("torch."):
                yield holder, name


def _of_caches() -> Iterator[Named]:
    """Yield how transformers' caches take in keys and values, which no forward calls by a global name."""
    for kind in (DynamicCache, DynamicLayer, DynamicSlidingWindowLayer):
        for name in ("update", "get_seq_length", "get_mask_sizes"):
            yield Named(kind, name, getattr(kind, name))


def _interfaces(configs: Iterable[PreTrainedConfig]) -> Iterator[Named]:
    """Yield what transformers has registered as the attention of the configs, and for its masks."""
    for name in dict.fromkeys(str(config._attn_implementation) for config in configs):
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            if (found := registry.get(name)) is not None:
                yield Named(registry, name, found)
    for name, found in ALL_EXPERTS_FUNCTIONS.items():
        yield Named(ALL_EXPERTS_FUNCTIONS, name, found)


def _configs(seen: list[_Seen]) -> Iterator[PreTrainedConfig]:
    for one in seen:
        if isinstance(config := one.module.__dict__.get("config"), PreTrainedConfig):
            yield config
            yield from (value for value in vars(config).values() if isinstance(value, PreTrainedConfig))


def _settings() -> tuple[Any, ...]:
    """Return what a process sets for all models at once and float32 results depend on."""
    hooks = tuple(tuple(getattr(torch_module, name)) for name in GLOBAL_HOOKS), tuple(map(id, callers_modes()))
    return torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, hooks
