"""Reading and writing the residual stream: the only file that registers a hook, and only inside a `with`.

Layer 0 is what enters block 1 and is met by a pre-hook; layer ℓ ≥ 1 is the output of the whole ℓ-th block (rules 1
and 2). Blocks return a tensor or a tuple that starts with one (rule 3): both are handled by `_stream` and `_replaced`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

    def reader(layer: int, places: Places) -> Any:
        def read(stream: Tensor) -> None:
            states[layer] = stream[places.index(stream.device)].detach().clone()

        return read

    with ExitStack() as stack:
        for layer, places in wanted.items():
            stack.enter_context(_on_stream(model, layer, reader(layer, places)))
        yield states


@contextmanager
def patch(model: Model, writes: Sequence[LayerWrite]) -> Iterator[None]:
    """While open, every forward pass overwrites the states at the places of `writes`, and no others (rule 5).

    The caller says which passes those are: with a KV cache, the one that runs the places' columns; without one, all.
    """

    def writer(write: LayerWrite) -> Any:
        def overwrite(stream: Tensor) -> Tensor:
            patched = stream.clone()
            patched[write.places.index(stream.device)] = write.vectors.to(stream)
            return patched

        return overwrite

    with ExitStack() as stack:
        for write in writes:
            stack.enter_context(_on_stream(model, write.layer, writer(write)))
        yield


@contextmanager
def _on_stream(model: Model, layer: int, act: Any) -> Iterator[None]:
    """Call `act` on the residual stream at `layer`; what it returns, unless None, takes the stream's place."""
    handle = _enter(model.blocks[0], act) if layer == 0 else _leave(model.blocks[layer - 1], act)
    try:
        yield
    finally:
        handle.remove()


def _enter(block: nn.Module, act: Any) -> torch.utils.hooks.RemovableHandle:
    def pre_hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        stream = args[0] if args else kwargs["hidden_states"]
        new = act(stream)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return block.register_forward_pre_hook(pre_hook, with_kwargs=True)


def _leave(block: nn.Module, act: Any) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        new = act(_stream(output))
        return None if new is None else _replaced(output, new)

    return block.register_forward_hook(hook)


def _stream(output: Any) -> Float[Tensor, "row column d_model"]:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _replaced(output: Any, stream: Tensor) -> Any:
    return (stream, *output[1:]) if isinstance(output, tuple) else stream
