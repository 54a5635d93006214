"""Plain passes over texts, for whatever reads hidden states and writes none: similar lengths together, one pass each.

    text_states    the states of whole texts, at every position
    captured       single states, whatever their texts

Axes: text, token (of one text, unpadded), d_model, d_head_in.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.alone import batched
from patchscopes.compute import compute_of
from patchscopes.errors import ModelChangedError
from patchscopes.foreign import running
from patchscopes.forward import without_head
from patchscopes.hooks import Places, capture, returns_tuples
from patchscopes.layout import Layout
from patchscopes.models import Columns, Inputs, Model, calm
from patchscopes.spec import Ids, State

TOKENS_AT_ONCE = 1024  # of a pass, padding included: of SmolLM2's 31 layers, 70 MiB of states


@dataclass(frozen=True, slots=True)
class TextStates:
    """The states of one text, number `index` of those given, by layer, in float32.

    `head_input` is what enters the model's head at each token: its own final distribution before the vocabulary.
    """

    index: int
    ids: Ids
    states: Mapping[int, Float[Tensor, "token d_model"]]
    head_input: Float[Tensor, "token d_head_in"]


def text_states(
    model: Model, texts: Sequence[Ids], layers: Sequence[int], *, tokens_at_once: int | None = None
) -> Iterator[TextStates]:
    """The states of each text at `layers` (0…n_layers, rule 1), a text at a time; the shortest first, not as given.

    A pass runs as many texts as make up `tokens_at_once` tokens with their padding, at least one; its states are in
    memory together. An empty text has no states and is refused by an assertion: leave it out. Raises ModelChangedError
    where the model changes meanwhile.
    """
    assert all(texts)
    with steady(model):
        at_once = _at_once(model, tokens_at_once or TOKENS_AT_ONCE, max(map(len, texts), default=0))
        returns_tuples(model)  # known before anything is replaced
        for indices in _batches([len(ids) for ids in texts], at_once):
            rows = [texts[index] for index in indices]
            layout = Layout(rows)
            places = _places(
                [(row, layout.column(row, position)) for row, ids in enumerate(rows) for position in range(len(ids))]
            )
            run = _run(model, layout, dict.fromkeys(layers, places), columns="all")
            lengths = [len(ids) for ids in rows]
            parts = {layer: torch.split(states, lengths) for layer, states in run.states.items()}
            head_inputs = torch.split(run.head_input[places.index(run.head_input.device)].float(), lengths)
            for row, index in enumerate(indices):
                yield TextStates(index, rows[row], {layer: parts[layer][row] for layer in layers}, head_inputs[row])


def captured(model: Model, states: Sequence[State]) -> Float[Tensor, "state d_model"]:
    """The states themselves, in float32, in the order given. Each text runs once for every mask that it has.

    Raises OptionError for a masked state of a model that cannot mask.
    """
    with steady(model):
        return _captured(model, states)


def _captured(model: Model, states: Sequence[State]) -> Float[Tensor, "state d_model"]:
    of_text: dict[tuple[Ids, tuple[int, ...]], list[int]] = {}
    for index, state in enumerate(states):
        of_text.setdefault((state.ids, state.masked), []).append(index)
        if state.masked:
            model.check_masks()
    found = torch.empty(len(states), model.d_model, dtype=torch.float32, device=model.device)
    texts = list(of_text)
    returns_tuples(model)  # known before anything is replaced
    lengths = [len(ids) for ids, _ in texts]
    for batch in _batches(lengths, _at_once(model, TOKENS_AT_ONCE, max(lengths, default=0))):
        layout = Layout([texts[row][0] for row in batch], [texts[row][1] for row in batch])
        by_layer: dict[int, list[int]] = {}
        column = {}
        for row, text in enumerate(batch):
            for index in of_text[texts[text]]:
                by_layer.setdefault(states[index].layer, []).append(index)
                column[index] = (row, layout.column(row, states[index].position))
        wanted = {layer: _places([column[index] for index in indices]) for layer, indices in by_layer.items()}
        run = _run(model, layout, wanted, columns="last")
        for layer, indices in by_layer.items():
            found[torch.tensor(indices, dtype=torch.long, device=found.device)] = run.states[layer]
    return found


@contextmanager
def steady(model: Model) -> Iterator[None]:
    """Run the model as it is when this opens. Raises ModelChangedError where it is not the same at the end (rule 0)."""
    model.current()
    epoch = model.epoch
    yield
    model.ran()
    changes = [change.text for change in model.changes()]
    if changes or model.epoch != epoch:
        raise ModelChangedError(
            f"{model.id} changed while its states were read ({'; '.join(changes[:3]) or 'another call has met it'}), "
            "so they are of two models. Do not change a model during a call; call again."
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """What one pass gave: states in the order of the places wanted, and the head's input of every row and column."""

    states: dict[int, Float[Tensor, "place d_model"]]
    head_input: Float[Tensor, "row column d_head_in"]


@calm()
def _run(model: Model, layout: Layout, wanted: Mapping[int, Places], *, columns: Columns) -> _Run:
    device = model.device
    inputs = Inputs(layout.ids(device), layout.mask(device), layout.position_ids(device))
    installed = compute_of(model).installed() if batched(model, layout.width) else nullcontext()
    with running(model.id), installed, without_head(model) as taken, capture(model, wanted) as found:
        model.forward(inputs, columns)
    return _Run({layer: found[layer].float().to(device) for layer in wanted}, taken[0])


def _at_once(model: Model, n_tokens: int, longest: int) -> int:
    """Return how many tokens a pass may run: of one text alone, where what is attached may not bear batches."""
    return n_tokens if batched(model, longest) else 0


def _places(entries: Sequence[tuple[int, int]]) -> Places:
    rows, columns = zip(*entries, strict=True)
    return Places(rows, columns)


def _batches(lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Indices of texts that run together: as many of like length as fit, the short ones first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > at_once:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
