"""A private tree of a model's modules: what one run calls in place of the caller's own modules.

What a run must change (functions that stand in for modules, hooks on the stream, the attention interface, flags of the
config) would be met by every other thread that calls the same model. So a run calls copies: a private module has the
class, the parameters, the buffers and the plain attributes of its original, by reference, and calls the original's
hooks with the original as their module. Only what must differ is copied, with all that lies above it; every other
module is the caller's own, and runs as it is.

    hf → model → layers → block 0…n−1 → self_attn → q_proj …
    private throughout                  where replaced

A private tree is for one pass at a time: `Trees` lends it out and makes another where all are out.
"""

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from transformers import PreTrainedConfig, PreTrainedModel

GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
DEPRECATION = "transformers.utils.deprecation"
# Lengths grow these modules' buffers as they run: a private one grows its own.
GROWING_ROPE = frozenset({"dynamic", "longrope"})
FLAGS: Mapping[str, object] = {"return_dict": True, "_output_attentions": False, "output_hidden_states": False}

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
FLAGS_OF_HOOKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Replacements:
    """What a private tree runs otherwise than its original.

    `forwards` are by original module. `functions` are by the original function, wherever a module of the blocks
    calls it by a global name. `attention`: whether attention modules get a config of their own.
    """

    forwards: Mapping[nn.Module, Forward] = field(default_factory=dict)
    functions: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    attention: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """Modules to run: the whole, its blocks, its head, and the configs that its attention modules read.

    `private` is False where the modules are the caller's own, since they cannot be copied.
    """

    hf: PreTrainedModel
    blocks: Sequence[nn.Module]
    head: nn.Module
    configs: Sequence[PreTrainedConfig] = ()
    private: bool = True

    @contextmanager
    def attending_by(self, implementation: str) -> Iterator[None]:
        """While open, private attention modules attend by what transformers has registered under that name."""
        before = [config._attn_implementation for config in self.configs]
        try:
            for config in self.configs:
                config._attn_implementation = implementation
            yield
        finally:
            # A config that holds others may pass it on to them; those were made before it.
            for config, was in reversed(list(zip(self.configs, before, strict=True))):
                config._attn_implementation = was


def own_tree(hf: PreTrainedModel, blocks: Sequence[nn.Module]) -> Tree:
    """Return the caller's own modules."""
    return Tree(hf, tuple(blocks), _head(hf), private=False)


class Trees:
    """The private trees of one model that run by the same replacements; lent one at a time."""

    def __init__(self, hf: PreTrainedModel, blocks: Sequence[nn.Module], replacements: Replacements) -> None:
        self._hf, self._blocks, self._replacements = hf, tuple(blocks), replacements
        self._free: list[Tree] = []
        self._private = True

    @contextmanager
    def lent(self) -> Iterator[Tree]:
        """Lend a tree that nobody else has until the context ends."""
        free = self._free
        try:
            tree = free.pop()  # atomic, as `append` is: no lock that a forked child would inherit
        except IndexError:
            tree = self._made()
        try:
            yield tree
        finally:
            free.append(tree)  # of a list that `forget` may have left behind

    def forget(self) -> None:
        """Make trees anew from now on: attributes of the modules that they copied have changed."""
        self._free = []

    def give_up(self) -> None:
        """Lend the caller's own modules from now on: copies do not run as they do."""
        self._private, self._free = False, []

    def _made(self) -> Tree:
        if not self._private:
            return own_tree(self._hf, self._blocks)
        return private_tree(self._hf, self._blocks, self._replacements)


def private_tree(hf: PreTrainedModel, blocks: Sequence[nn.Module], replacements: Replacements) -> Tree:
    """Copy what must differ. Where the way to the blocks cannot be copied, the tree is the caller's own modules."""
    builder = _Builder(hf, blocks, replacements)
    if has_global_hooks() or not builder.reaches_blocks():
        return own_tree(hf, blocks)
    private = builder.made(hf)
    assert isinstance(private, PreTrainedModel)
    return Tree(private, tuple(builder.made(block) for block in blocks), _head(private), builder.configs())


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile has wrapped, unless hooks stand on the wrapping, or the module given."""
    inner = module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None
    return module if inner is None or module._forward_hooks or module._forward_pre_hooks else inner


def has_global_hooks() -> bool:
    """Return whether the process has hooks on every module, or on every function, which must meet the caller's own."""
    return any(getattr(torch_module, name) for name in GLOBAL_HOOKS) or bool(callers_modes())


def callers_modes() -> list[object]:
    """Return what a caller has put around all functions of torch (a TorchFunctionMode), less torch's default device."""
    stack: list[object] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return [mode for mode in stack if not type(mode).__module__.startswith("torch.")]


def own_forward(module: nn.Module) -> Forward | None:
    """Return the `forward` that was set on this very module, None where it runs by its class."""
    forward: Forward | None = module.__dict__.get("forward")
    return forward


def runs_alone(module: nn.Module) -> bool:
    """Return whether a module and all within it run by their classes' own forwards, without hooks."""
    return not any(map(runs_users_code, module.modules()))


def runs_users_code(module: nn.Module) -> bool:
    """Return whether a hook or an own forward runs when this module does: either may set what it likes on it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def rebound(value: Any, old: object, new: object) -> Any:
    """Return `value` as it would be, had it been made for `new`: a method, a partial or a closure that holds `old`."""
    return _rebound(value, old, new, {}) if is_bound(value, old) else value


def _rebound(value: Any, old: object, new: object, made: dict[int, Any]) -> Any:
    if value is old:
        return new
    while (compiled := getattr(value, "_torchdynamo_orig_callable", None)) is not None:
        value = compiled
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, new) if value.__self__ is old else value
    if isinstance(value, functools.partial):
        args = (_rebound(arg, old, new, made) for arg in value.args)
        return functools.partial(_rebound(value.func, old, new, made), *args, **value.keywords)
    if isinstance(value, types.FunctionType) and is_bound(value, old):
        return _rebound_function(value, old, new, made)
    return value


def _rebound_function(
    function: types.FunctionType, old: object, new: object, made: dict[int, Any]
) -> types.FunctionType:
    """Return the function with its cells and defaults rebound; all other cells are shared, so counters go on."""
    before = function.__closure__ or ()
    cells = tuple(types.CellType() if is_bound(_content(cell), old) else cell for cell in before)
    other = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    made[id(function)] = other  # first: a function may hold itself
    for cell, was in zip(cells, before, strict=True):
        if cell is not was:
            cell.cell_contents = _rebound(_content(was), old, new, made)
    defaults = function.__defaults__ or ()
    other.__defaults__ = tuple(_rebound(value, old, new, made) for value in defaults) or None
    by_name = function.__kwdefaults__ or {}
    other.__kwdefaults__ = {name: _rebound(value, old, new, made) for name, value in by_name.items()} or None
    other.__dict__.update(vars(function))
    return other


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def is_bound(value: Any, old: object) -> bool:
    """Return whether `value` is `old`, or something that `rebound` can make for another in its place."""
    left, seen = [value], set[int]()
    while left:
        found = left.pop()
        if found is old:
            return True
        if id(found) in seen:
            continue
        seen.add(id(found))
        if (compiled := getattr(found, "_torchdynamo_orig_callable", None)) is not None:
            left.append(compiled)
        elif isinstance(found, types.MethodType):
            left += [found.__self__] if found.__self__ is old else []
        elif isinstance(found, functools.partial):
            left += [found.func, *found.args]
        elif isinstance(found, types.FunctionType):
            left += [*map(_content, found.__closure__ or ()), *(found.__defaults__ or ())]
            left += (found.__kwdefaults__ or {}).values()
    return False


@dataclass(frozen=True, slots=True)
class _Told:
    """A caller's hook, which is given the caller's own module."""

    hook: Callable[..., Any]
    module: nn.Module

    def __call__(self, _: nn.Module, *rest: Any) -> Any:
        return self.hook(self.module, *rest)


class _Builder:
    def __init__(self, hf: PreTrainedModel, blocks: Sequence[nn.Module], replacements: Replacements) -> None:
        self._hf, self._replacements = hf, replacements
        self._blocks = {unwrapped(block) for block in blocks}
        # A run calls these by functions of its own, whatever their forward is.
        self._always = {*self._blocks, _head(hf)}
        self._made: dict[nn.Module, nn.Module] = {}
        self._configs: dict[int, PreTrainedConfig] = {}
        self._above = self._ancestors()
        self._inside = {part for block in self._blocks for part in block.modules()}

    def _ancestors(self) -> set[nn.Module]:
        """Return the modules above the blocks."""
        found: set[nn.Module] = set()

        def holds(module: nn.Module) -> bool:
            inner = [holds(unwrapped(child)) for child in module._modules.values() if child is not None]
            if module in self._blocks or not any(inner):
                return module in self._blocks
            found.add(module)
            return True

        holds(self._hf)
        return found

    def configs(self) -> list[PreTrainedConfig]:
        """Return the private copies of configs that were made."""
        return list(self._configs.values())

    def reaches_blocks(self) -> bool:
        """Return whether copies of the modules above the blocks call copies of the blocks."""
        return self._hf in self._above and all(
            (forward := own_forward(module)) is None or is_bound(forward, module) for module in self._above
        )

    def made(self, module: nn.Module) -> nn.Module:
        """Return the module that stands for `module` in the private tree: a copy, or the module itself."""
        module = unwrapped(module)
        if module not in self._made:
            children = {name: None if c is None else self.made(c) for name, c in module._modules.items()}
            same = all(children[name] is module._modules[name] for name in children)
            self._made[module] = module if same and not self._must_differ(module) else self._copy(module, children)
        return self._made[module]

    def _must_differ(self, module: nn.Module) -> bool:
        if module in self._above or module in self._always or module in self._replacements.forwards:
            return True
        if (forward := own_forward(module)) is not None and not is_bound(forward, module):
            return False
        attends = self._replacements.attention and "layer_idx" in module.__dict__ and "config" in module.__dict__
        if module in self._inside and (attends or self._with_functions(module) is not None):
            return True
        return grows(module)

    def _copy(self, module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
        if module not in self._always and (own := own_forward(module)) is not None and not is_bound(own, module):
            return module  # it runs what it was given, on its own children
        private: nn.Module = object.__new__(type(module))
        values = {
            name: rebound(value, module, private) if callable(value) else value
            for name, value in module.__dict__.items()
        }
        values["_modules"] = dict(children)
        for name in HOOKS:
            values[name] = OrderedDict((key, _Told(hook, module)) for key, hook in module.__dict__[name].items())
        for name in FLAGS_OF_HOOKS:
            values[name] = OrderedDict(module.__dict__[name])
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            values[name] = OrderedDict()  # passes record no gradients
        values["_compiled_call_impl"] = None
        if isinstance(config := values.get("config"), PreTrainedConfig):
            values["config"] = self._config(config)
        if grows(module):
            values["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
        stands_in = self._replacements.forwards.get(module)
        if stands_in is None and (forward := self._with_functions(module)) is not None:
            stands_in = types.MethodType(forward, private)
        if stands_in is not None:
            values["forward"] = stands_in
        private.__dict__.update(values)
        return private

    def _with_functions(self, module: nn.Module) -> types.FunctionType | None:
        """Return the class's forward with other functions under its global names, None where it names none of them."""
        if not self._replacements.functions or own_forward(module) is not None:
            return None
        forward = plain_forward(type(module))
        if forward is None:
            return None
        named = {name: forward.__globals__.get(name) for name in forward.__code__.co_names}
        others = {
            name: self._replacements.functions[value]
            for name, value in named.items()
            if callable(value) and getattr(value, "__hash__", None) and value in self._replacements.functions
        }
        if not others:
            return None
        changed = types.FunctionType(
            forward.__code__,
            {**forward.__globals__, **others},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        changed.__kwdefaults__ = forward.__kwdefaults__
        return changed

    def _config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the private copy of a config, one for each original, that asks for no more than logits."""
        if id(config) not in self._configs:
            private = self._configs[id(config)] = copy.copy(config)
            for name, value in vars(config).items():
                if isinstance(value, PreTrainedConfig):
                    private.__dict__[name] = self._config(value)
            private.__dict__.update({name: value for name, value in FLAGS.items() if name in private.__dict__})
        return self._configs[id(config)]


def plain_forward(kind: type[nn.Module]) -> types.FunctionType | None:
    """Return the class's forward without the wrapper that renames deprecated arguments, None for other wrappers."""
    forward: Any = kind.forward
    while getattr(forward, "__module__", "") and hasattr(forward, "__wrapped__"):
        if getattr(forward, "__code__", None) is None or forward.__globals__.get("__name__") != DEPRECATION:
            return None
        forward = forward.__wrapped__
    return forward if isinstance(forward, types.FunctionType) else None


def grows(module: nn.Module) -> bool:
    """Return whether it is a rotary embedding whose buffers follow the length of the text that it runs."""
    kinds = getattr(module, "rope_type", None)
    found = kinds.values() if isinstance(kinds, Mapping) else [kinds]
    return any(isinstance(kind, str) and kind in GROWING_ROPE for kind in found)


def _head(hf: PreTrainedModel) -> nn.Module:
    head = hf.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return unwrapped(head)
