"""Reading and writing the residual stream: the only file that registers a hook, and only inside a `with`.

    capture     store states as they pass
    patch       overwrite states at some places of one layer
    enter       start each row of a batch at its own layer ℓ*, with its own states
    replaced    run a module by another function for a while

Layer 0 is what enters block 1 and is met by a pre-hook; layer ℓ ≥ 1 is the output of the whole ℓ-th block (rules 1
and 2). Blocks return a tensor or a tuple that starts with one (rule 3): both are handled by `_stream` and `_replaced`.

What is hooked in is a `partial` or an object, and no function inside another: those are made anew at each pass, and
where tests check the types of each function that is made, making it takes longer than the pass.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchscopes.models import Model


@dataclass(frozen=True, slots=True)
class Places:
    """Places in a padded batch: entry k is (rows[k], columns[k])."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pair of index tensors, on `device`."""
        return torch.tensor(self.rows, device=device), torch.tensor(self.columns, device=device)


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
    with ExitStack() as stack:
        for layer, places in wanted.items():
            stack.enter_context(_on_stream(model, layer, partial(_read, states, layer, places)))
        yield states


def _read(states: dict[int, Tensor], layer: int, places: Places, stream: Tensor) -> None:
    states[layer] = stream[places.index(stream.device)].detach().clone()


@contextmanager
def patch(model: Model, writes: Sequence[LayerWrite]) -> Iterator[None]:
    """While open, every forward pass overwrites the states at the places of `writes`, and no others (rule 5).

    The caller says which passes those are: with a KV cache, the one that runs the places' columns; without one, all.
    """
    with ExitStack() as stack:
        for write in writes:
            stack.enter_context(_on_stream(model, write.layer, partial(_overwrite, write)))
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

    Rows that have not entered yet wait in the stream with the states that they will enter with; a block sees the rows
    before them, and of whatever else it is given (masks, rotary angles) the part that is theirs.
    """
    n_rows = len(entry.layers)
    tuples = returns_tuples(model)
    forwards = {
        block: _Started(block.forward, n, n_rows, tuples)
        for index, block in enumerate(model.blocks)
        if (n := entry.n_started(index + 1)) < n_rows
    }
    with replaced(forwards), _on_stream(model, 0, partial(_begin, entry)):
        yield


def _begin(entry: Entry, stream: Tensor) -> Tensor:
    new = stream.clone()
    new[entry.n_embedded :] = entry.stream.to(stream)
    return new


@dataclass(frozen=True, slots=True)
class _Started:
    """A block's forward where only the first `n` of `n_rows` rows have started."""

    forward: Callable[..., Any]
    n: int
    n_rows: int
    tuples: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        if self.n == 0:
            return (stream, None) if self.tuples else stream
        output = self.forward(*_part(args, self.n, self.n_rows), **_part(kwargs, self.n, self.n_rows))
        return _replaced(output, torch.cat((_stream(output), stream[self.n :].to(_stream(output)))))


@dataclass(frozen=True, slots=True)
class _ReturnsTuples:
    """Whether a model's blocks return tuples: what stands in for one that is passed by must look the same."""

    blocks: bool


def returns_tuples(model: Model) -> bool:
    """Whether the blocks return tuples; found by a pass of one token at first use, outside of any other."""
    return model.kept(_ReturnsTuples, _find_tuples).blocks


def _find_tuples(model: Model) -> _ReturnsTuples:
    found: list[bool] = []
    handle = model.blocks[0].register_forward_hook(lambda _, __, output: found.append(isinstance(output, tuple)))
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
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While open, each module runs by the function given for it; what was there before comes back."""
    before: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


@contextmanager
def _on_stream(model: Model, layer: int, act: Any) -> Iterator[None]:
    """Call `act` on the residual stream at `layer`; what it returns, unless None, takes the stream's place."""
    if layer == 0:
        handle = model.blocks[0].register_forward_pre_hook(partial(_enter, act), with_kwargs=True)
    else:
        handle = model.blocks[layer - 1].register_forward_hook(partial(_leave, act))
    try:
        yield
    finally:
        handle.remove()


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
