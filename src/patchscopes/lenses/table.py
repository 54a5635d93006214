"""The classic lens table: what each layer would say at each position, if the model ended there.

Axes: layer (0…n_layers; the last is the model's own output), position, k.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import compute_of
from patchscopes.errors import LayerError, OptionError, SourceError
from patchscopes.lenses.reading import ROWS_AT_ONCE, check_lens, head_inputs
from patchscopes.lenses.results import LensCell, LensTable
from patchscopes.mappings import Mappings
from patchscopes.models import Model
from patchscopes.numbers import plain
from patchscopes.passes import text_states
from patchscopes.prompts import Tokenized, tokenize
from patchscopes.prompts.tokens import cautions, check_rows
from patchscopes.provenance import commit, versions
from patchscopes.readouts import token_text
from patchscopes.spec import Bos, TopToken


def lens_table(
    model: Model,
    text: str,
    lens: Mappings | None = None,
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 1,
    bos: Bos = "auto",
) -> LensTable:
    """What `layers` (None: all) say at each token of `text`, read through `lens`; None: the logit lens.

    Raises SourceError for an empty text, ContextLengthError for one that is too long, VocabularyError for one with
    tokens beyond the embedding, LayerError for layers that are not there, OptionError for `top_k` below 1, MappingError
    for a lens of other weights or without one of the layers.
    """
    wanted = tuple(range(model.n_layers + 1)) if layers is None else tuple(sorted(set(map(plain, layers))))
    top_k = plain(top_k)
    model.current()
    _check(model, wanted, top_k)
    tokenized = _tokens(model, text, bos)
    if lens is not None:
        check_lens(lens, model)
    (found,) = text_states(model, [tokenized.ids], wanted)
    final = found.head_input.to(model.dtype)
    below = {layer: states for layer, states in found.states.items() if layer < model.n_layers}
    read = head_inputs(model, lens, below)
    if model.n_layers in wanted:
        read[model.n_layers] = final
    return LensTable(
        text=tokenized.text,
        ids=tokenized.ids,
        tokens=tokenized.tokens,
        layers=wanted,
        cells=_cells(model, final, read, top_k),
        lens=None if lens is None else lens.describe(),
        model=model.describe(),
        versions=versions(),
        commit=commit(),
        bos=bos,
        top_k=top_k,
        cautions=tuple(cautions(model, tokenized)),
    )


def _check(model: Model, layers: Sequence[int], top_k: int) -> None:
    wrong = [layer for layer in layers if not 0 <= layer <= model.n_layers]
    if wrong or not layers:
        raise LayerError(
            f"layer {wrong[0]} is out of range: {model.id} has layers 0 (what enters block 1) to {model.n_layers}."
            if wrong
            else f"no layer was given; give some of 0 to {model.n_layers}."
        )
    if not 1 <= top_k <= model.d_vocab:
        raise OptionError(f"top_k is {top_k}; it must be at least 1 and at most {model.d_vocab}, the vocabulary.")


def _tokens(model: Model, text: str, bos: Bos) -> Tokenized:
    if not isinstance(text, str):
        raise SourceError(f"a lens reads one text, not a {type(text).__name__}: {text!r}.")
    tokenized = tokenize(model, text, bos=bos) if text.strip() else None
    if tokenized is None or not len(tokenized):
        raise SourceError("the text is empty; give at least one word.")
    check_rows(model, tokenized)
    model.check_length(len(tokenized), 0, "the text")
    return tokenized


def _cells(
    model: Model, final: Float[Tensor, "position d_head_in"], read: dict[int, Tensor], top_k: int
) -> tuple[LensCell, ...]:
    """Each layer's cells in the order of positions, layer by layer."""
    head = compute_of(model).head
    cells: dict[int, list[LensCell]] = {layer: [] for layer in read}
    for start in range(0, len(final), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        own = head.best(final[rows]).tokens
        divergences = head.divergences(final[rows], [x[rows] for x in read.values()])
        for (layer, x), kl in zip(read.items(), divergences, strict=True):
            found = head.distribution(x[rows], top_k)
            ranks = head.ranks(x[rows], own)
            for row in range(len(own)):
                cells[layer].append(
                    LensCell(
                        layer=layer,
                        position=start + row,
                        top=_top(model, found.tokens[row], found.logprobs[row]),
                        entropy=float(found.entropy[row]),
                        kl=float(kl[row]),
                        rank=int(ranks[row]),
                        agrees=bool(found.tokens[row, 0] == own[row]),
                    )
                )
    return tuple(cell for layer in sorted(cells) for cell in cells[layer])


def _top(model: Model, ids: Tensor, logprobs: Tensor) -> tuple[TopToken, ...]:
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return tuple(TopToken(token_text(model, id), id, logprob) for id, logprob in pairs)
