"""Reading and writing the residual stream: the only file that registers a hook, and only inside a `with`.

    capture     store states as they pass
    patch       overwrite states at some places of one layer
    enter       start each row of a batch at its own layer ℓ*, with its own states
    called_by   call a module by another function for a while, its hooks left out

All of it is done to the private tree that this thread runs, which no other thread meets (`models/tree.py`). Where a
model cannot be copied, hooks stand on its own modules and act in the thread that set them alone. The caller's hooks run
before ours: a state is what they leave, and what is written comes after them.

Layer 0 is what enters block 1 and is met by a pre-hook; layer ℓ ≥ 1 is the output of the whole ℓ-th block (rules 1
and 2). Blocks return a tensor or a tuple that starts with one (rule 3): both are handled by `_stream` and `_replaced`.

What is hooked in is a `partial` or an object, and no function inside another: those are made anew at each pass, and
where tests check the types of each function that is made, making it takes longer than the pass.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchscopes.models import Model, Tree


@dataclass(frozen=True, slots=True)
class Places:
    """Places in a padded batch: entry k is (rows[k], columns[k])."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pair of index tensors, on `device`."""
        return torch.tensor(self.rows, dtype=torch.long, device=device), torch.tensor(
            self.columns, dtype=torch.long, device=device
        )


@dataclass(frozen=True, slots=True)
class LayerWrite:
    """Vectors to write at one layer of a batch; entry k goes to place k. Shape of `vectors`: (place, d_model)."""

    layer: int
    places: Places
    vectors: Tensor


@contextmanager
def capture(model: Model, wanted: Mapping[int, Places]) -> Iterator[dict[int, Float[Tensor, "place d_model"]]]:
    """While open, a forward pass stores the states of the wanted places, by layer, in the dict that this yields.

    The states are copies in the model's dtype, on the block's device, and never HF's `output_hidden_states`, whose
    last entry is normed.
    """
    states: dict[int, Tensor] = {}
    with model.running() as tree, ExitStack() as stack:
        for layer, places in wanted.items():
            stack.enter_context(_on_stream(tree, layer, partial(_read, states, layer, places)))
        yield states


def _read(states: dict[int, Tensor], layer: int, places: Places, stream: Tensor) -> None:
    states[layer] = stream[places.index(stream.device)].detach().clone()


@contextmanager
def patch(model: Model, writes: Sequence[LayerWrite]) -> Iterator[None]:
    """While open, every forward pass overwrites the states at the places of `writes`, and no others (rule 5).

    The caller says which passes those are: with a KV cache, the one that runs the places' columns; without one, all.
    """
    with model.running() as tree, ExitStack() as stack:
        for write in writes:
            stack.enter_context(_on_stream(tree, write.layer, partial(_overwrite, write)))
        yield


def _overwrite(write: LayerWrite, stream: Tensor) -> Tensor:
    patched = stream.clone()
    patched[write.places.index(stream.device)] = write.vectors.to(stream)
    return patched


@dataclass(frozen=True, slots=True)
class Entry:
    """Where each row of a batch starts: row r enters at `layers[r]`, ascending.

    The first `n_embedded`, at layer 0, keep what the model embeds; `stream` holds the states that the others enter
    with, of shape (row, column, d_model).
    """

    layers: Sequence[int]
    stream: Float[Tensor, "row column d_model"]
    n_embedded: int = 0

    def n_started(self, block: int) -> int:
        """How many rows run through block `block` (1…n_layers): those that enter below it."""
        return bisect_left(self.layers, block)


@contextmanager
def enter(model: Model, entry: Entry) -> Iterator[None]:
    """While open, a forward pass runs each row only through the blocks above its layer (rule 15).

    Rows that have not entered yet wait in the stream with the states that they will enter with; a block, and the hooks
    that the caller has on it, see the rows before them, and of whatever else the block is given (masks, rotary angles)
    the part that is theirs.
    """
    n_rows = len(entry.layers)
    tuples = returns_tuples(model)
    with model.running() as tree:
        if not tree.private:
            raise AssertionError("rows start at their own layers in private modules alone")
        calls: dict[nn.Module, Callable[..., Any]] = {
            block: _Started(block._call_impl, n, n_rows, tuples, entry if index == 0 else None)
            for index, block in enumerate(tree.blocks)
            if (n := entry.n_started(index + 1)) < n_rows
        }
        with called_by(calls), _on_stream(tree, 0, partial(_begin, entry)):
            yield


def _begin(entry: Entry, stream: Tensor) -> Tensor:
    """The rows that run through block 1, behind the caller's hooks there: those that write at layer 0 have written."""
    new = stream.clone()
    new[entry.n_embedded :] = entry.stream[: len(stream) - entry.n_embedded].to(stream)
    return new


@dataclass(frozen=True, slots=True)
class _Started:
    """A call of a block where only the first `n` of `n_rows` rows have started; block 1 has the others' `entry`."""

    call: Callable[..., Any]
    n: int
    n_rows: int
    tuples: bool
    entry: Entry | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        waiting = stream[self.n :]
        if self.entry is not None:
            waiting = self.entry.stream[self.n - self.entry.n_embedded :].to(stream)
        if self.n == 0:
            return (waiting, None) if self.tuples else waiting
        output = self.call(*_part(args, self.n, self.n_rows), **_part(kwargs, self.n, self.n_rows))
        return _replaced(output, torch.cat((_stream(output), waiting.to(_stream(output)))))


@dataclass(frozen=True, slots=True)
class _ReturnsTuples:
    """Return whether a model's blocks return tuples: what stands in for one that is passed by must look the same."""

    blocks: bool


def returns_tuples(model: Model) -> bool:
    """Return whether the blocks return tuples; found by a pass of one token at first use, outside of any other."""
    return model.kept(_ReturnsTuples, _find_tuples).blocks


def _find_tuples(model: Model) -> _ReturnsTuples:
    found: list[bool] = []
    with model.running() as tree:
        note = _here_alone(tree, lambda _, __, output: found.append(isinstance(output, tuple)))
        handle = tree.blocks[0].register_forward_hook(note)
        try:
            model.next_logits(torch.zeros(1, 1, dtype=torch.long, device=model.device))
        finally:
            handle.remove()
    return _ReturnsTuples(found[0])


def _part(value: Any, n: int, n_rows: int) -> Any:
    """The first `n` of `n_rows` rows of whatever a block is given, also where a row has several (ALiBi: one a head)."""
    if isinstance(value, Tensor):
        rows = value.shape[0] if value.dim() > 1 else 0
        return value[: n * (rows // n_rows)] if rows and rows % n_rows == 0 else value
    if isinstance(value, tuple | list):
        return type(value)(_part(entry, n, n_rows) for entry in value)
    if isinstance(value, dict):
        return {key: _part(entry, n, n_rows) for key, entry in value.items()}
    return value


@contextmanager
def called_by(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While open, a call of each of these private modules is a call of the function given for it.

    The hooks of the module are then left to the function. `_compiled_call_impl` is PyTorch's own place for that.
    """
    before: dict[nn.Module, Any] = {module: module.__dict__.get("_compiled_call_impl") for module in calls}
    try:
        for module, call in calls.items():
            module.__dict__["_compiled_call_impl"] = call
        yield
    finally:
        for module, call in before.items():
            module.__dict__["_compiled_call_impl"] = call


@contextmanager
def met_by(tree: Tree, module: nn.Module, act: Callable[[Tensor], object]) -> Iterator[None]:
    """While open, `act` is told of what enters `module`, behind the caller's hooks there."""
    handle = module.register_forward_pre_hook(_here_alone(tree, partial(_tell, act)))
    try:
        yield
    finally:
        handle.remove()


def _tell(act: Callable[[Tensor], object], _: nn.Module, args: tuple[Any, ...]) -> None:
    act(args[0])


@contextmanager
def _on_stream(tree: Tree, layer: int, act: Any) -> Iterator[None]:
    """Call `act` on the residual stream at `layer`; what it returns, unless None, takes the stream's place."""
    if layer == 0:
        hook = _here_alone(tree, partial(_enter, act))
        handle = tree.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    else:
        handle = tree.blocks[layer - 1].register_forward_hook(_here_alone(tree, partial(_leave, act)))
    try:
        yield
    finally:
        handle.remove()


def _here_alone(tree: Tree, hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook itself on private modules; on the caller's own, one that acts in this thread alone."""
    return hook if tree.private else _Here(hook, threading.get_ident())


@dataclass(frozen=True, slots=True)
class _Here:
    """A hook that acts in one thread, and in all others leaves things as they are."""

    hook: Callable[..., Any]
    thread: int

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args) if threading.get_ident() == self.thread else None


def _enter(act: Any, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    stream = args[0] if args else kwargs["hidden_states"]
    new = act(stream)
    if new is None:
        return None
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def _leave(act: Any, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    new = act(_stream(output))
    return None if new is None else _replaced(output, new)


def _stream(output: Any) -> Float[Tensor, "row column d_model"]:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _replaced(output: Any, stream: Tensor) -> Any:
    return (stream, *output[1:]) if isinstance(output, tuple) else stream
