"""Is a split word put together again? Its whole-word token among the nearest neighbours of the state at its last piece.

A word that is one token when written plainly (" Paris") is split by force (" P", "aris"). The whole word's token never
entered the model; where it stands among the k nearest tokens of the state of the last piece, the model has made it.
Beside it: the tokens of other words among the same neighbours, the word's own at ℓ 0, where only the last piece has
been read, and the state of the plain word. Where even that has its own token near it at no ℓ but 0, embeddings say
nothing about states in this model, and it is no news that a split word has not.

So a word is also looked for among states: is the state of its last piece nearer to the state of the same word, plain,
at the same ℓ, than to that of any other word? Both are taken from their means over words, which all have in common. By
chance this would be so of one in as many as there are words, and at ℓ 0 the last piece alone decides.

Axes: word, layer (ℓ); draw, of other words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.nn.functional import normalize

from patchscopes.data import Exclusion
from patchscopes.neighbours import Neighbour, nearest_tokens
from patchscopes.passes import captured
from patchscopes.rng import philox
from patchscopes.spec import Ids, State
from patchscopes.studies.entities import DRAWS
from patchscopes.studies.tokenization.design import Design
from patchscopes.studies.tokenization.forms import Form, first_word

K = 10
SPLIT_WORD = "detokenisation"
MANY = "its first word is more than one token anyway"
AGAIN = "its first word was already asked about"
NO_SPLIT = "its first word could not be split"


@dataclass(frozen=True, slots=True)
class Word:
    """The first word of a name: its one token, and where its state is read, plain and split: (ids, position)."""

    entity: str
    text: str
    token_id: int
    plain: tuple[Ids, int]
    split: tuple[Ids, int]


@dataclass(frozen=True)
class Detokenised:
    """Whether each word's token is among the neighbours: (word, layer) bool; `shuffled` the mean over other words'."""

    words: tuple[Word, ...]
    excluded: tuple[Exclusion, ...]
    layers: tuple[int, ...]
    split: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    others: NDArray[np.bool_]  # word, draw, layer
    recognised: NDArray[np.bool_]  # whether the nearest plain state is the same word's

    @property
    def first(self) -> list[int | None]:
        """The first ℓ ≥ 1 at which the whole word's token is there."""
        return self._first(self.split)

    @property
    def first_recognised(self) -> list[int | None]:
        """The first ℓ ≥ 1 at which the split word is recognised."""
        return self._first(self.recognised)

    def _first(self, found: NDArray[np.bool_]) -> list[int | None]:
        # At ℓ 0 only the last piece has been read: what is near it there, no block has made.
        return [self.layers[1 + int(row.argmax())] if row.any() else None for row in found[:, 1:]]


def split_words(design: Design) -> tuple[tuple[Word, ...], list[Exclusion]]:
    """A word of each name that has one which is one token, each word once; the other names with the reason."""
    split = {form.entity.name: form for form in design.forms["odd-split"]}
    words: dict[int, Word] = {}
    excluded: list[Exclusion] = []
    for name in design.names:
        word = _word(name, split.get(name.entity.name))
        reason = word if isinstance(word, str) else AGAIN if word.token_id in words else None
        if reason:
            excluded.append(Exclusion(f"{name.entity.name}: {SPLIT_WORD}", reason))
        elif isinstance(word, Word):
            words[word.token_id] = word
    return tuple(words.values()), excluded


def _word(plain: Form, split: Form | None) -> Word | str:
    """The first word of a name, or why it cannot be asked about."""
    start, end = (plain.start + place for place in first_word(plain.said))
    inside = _covering(plain, start, end)
    if (
        len(inside) != 1
        or plain.tokenized.text[slice(*plain.tokenized.spans[inside[0]])].strip()
        != plain.said[slice(*first_word(plain.said))]
    ):
        return MANY
    if split is None:
        return NO_SPLIT
    pieces = _covering(split, start, end)
    if split.tokenized.spans[pieces[-1]][1] != end:
        return NO_SPLIT
    return Word(
        plain.entity.name,
        plain.tokenized.text[start:end],
        plain.tokenized.ids[inside[0]],
        (plain.tokenized.ids, inside[0]),
        (split.tokenized.ids, pieces[-1]),
    )


def _covering(form: Form, start: int, end: int) -> list[int]:
    return [k for k, (a, b) in enumerate(form.tokenized.spans) if a < end and b > start and a < b]


def detokenise(design: Design, *, k: int = K, tell: Callable[[str], None] = lambda _: None) -> Detokenised:
    """Look for each word's token among the `k` nearest of its states, plain and split, at every ℓ."""
    words, excluded = split_words(design)
    layers = design.every_layer
    states = [State(*place, layer) for word in words for place in (word.split, word.plain) for layer in layers]
    tell(f"the nearest of {design.setup.model.d_vocab:,} tokens for {len(states):,} states of {len(words)} words")
    nearest = nearest_tokens(design.setup.model, states, k=k)
    among = [{neighbour.token_id for neighbour in found} for found in nearest]
    grid = np.array(among, dtype=object).reshape(len(words), 2, len(layers))
    own = [word.token_id for word in words]
    others = other_words(own, seed=design.setup.seed)
    return Detokenised(
        words,
        tuple(excluded),
        layers,
        split=_present(grid[:, 0], own),
        plain=_present(grid[:, 1], own),
        others=np.stack([_present(grid[:, 0], ids) for ids in others.T.tolist()], axis=1)
        if others.size
        else np.zeros((len(words), 0, len(layers)), dtype=bool),
        recognised=recognised(design, words),
    )


def recognised(design: Design, words: Sequence[Word]) -> NDArray[np.bool_]:
    """Whether the state of each split word is nearest to that of the same word, plain: (word, layer)."""
    layers, n = design.every_layer, len(words)
    found = np.zeros((n, len(layers)), dtype=bool)
    if not words:
        return found
    states = [State(*place, layer) for word in words for place in (word.split, word.plain) for layer in layers]
    vectors = captured(design.setup.model, states).reshape(n, 2, len(layers), design.setup.model.d_model)
    units = normalize(vectors - vectors.mean(dim=0), dim=-1)
    for k in range(len(layers)):
        cosines = units[:, 0, k] @ units[:, 1, k].T
        found[:, k] = cosines.argmax(dim=1).cpu().numpy() == np.arange(n)
    return found


def _present(grid: NDArray[np.object_], ids: Sequence[int]) -> NDArray[np.bool_]:
    """Whether the token of each word is in the sets of its row."""
    return np.array([[id in found for found in row] for row, id in zip(grid, ids, strict=True)], dtype=bool).reshape(
        grid.shape
    )


def other_words(own: Sequence[int], *, seed: int) -> NDArray[np.int64]:
    """Tokens of other words for each word, drawn without repetition: (word, draw)."""
    n_draws = max(min(DRAWS, len(own) - 1), 0)
    drawn = []
    for k, id in enumerate(own):
        pool = [*own[:k], *own[k + 1 :]]
        order = philox("other words", seed, id).permutation(len(pool))
        drawn.append([pool[int(place)] for place in order[:n_draws]])
    return np.array(drawn, dtype=np.int64).reshape(len(own), n_draws)


def listed(design: Design, forms: Sequence[tuple[str, Form]]) -> list[tuple[str, Form, int, tuple[Neighbour, ...]]]:
    """The neighbours of the states at the last token of names in some forms, at every ℓ."""
    keys = [(label, form, layer) for label, form in forms for layer in design.every_layer]
    states = [State(form.tokenized.ids, form.positions[-1], layer) for _, form, layer in keys]
    found = nearest_tokens(design.setup.model, states, k=K)
    return [(*key, neighbours) for key, neighbours in zip(keys, found, strict=True)]
