"""What tests of next-token share: made-up prose, a runner that runs no model, and maps that nobody fitted."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import families
from patchscopes.mappings import Kind, Mapping, Mappings, Side, Transfer
from patchscopes.models import Model
from patchscopes.plan import Plan
from patchscopes.prompts import tokenize
from patchscopes.spec import Cell, Ids, Result, State, TopToken
from patchscopes.studies.next_token.design import AFFINE, FIXED_PROMPT, LOGIT_LENS, RANDOM_PROMPT, TUNED, Design
from study_cases import long_model

N_FILES, N_PASSAGES = 12, 6
RIGHT, WRONG, OTHER, PLAIN = 0.5, 3.0, 4.0, 5.0  # nats
LETTERS = tuple(families.tiny_tokenizer().encode(letter)[0] for letter in "bcdfghjklmnpqrstvwyz")

_SYLLABLES = ("bal", "cor", "dun", "fen", "gil", "hob", "jum", "kel", "lor", "mip", "nar", "pov", "ruk", "sil", "tam")


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def passage(*key: object) -> str:
    """A sentence of ten made-up words, unlike any other."""
    words = [_SYLLABLES[digest(*key, k)[0] % 15] + _SYLLABLES[digest(*key, k)[1] % 15] for k in range(10)]
    return f"{' '.join(words)}.".capitalize()


def prose(folder: Path, *, n_files: int = N_FILES, n_passages: int = N_PASSAGES, more: str = "") -> Path:
    """A folder of made-up prose, a section each file; `more` stands at the end of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(n_files):
        text = "\n\n".join(passage(file, k) for k in range(n_passages)) + (more if file == 0 else "")
        (folder / f"{file:02}.txt").write_text(text, encoding="utf-8")
    return folder


def maps(model: Model, kind: Kind) -> Mappings:
    """A map for every ℓ, of which no two are alike."""
    side, draw = Side.of(model), torch.Generator().manual_seed(len(kind))
    drawn = [torch.randn(model.d_model, model.d_model, generator=draw) for _ in range(model.n_layers)]
    by_pair = {(k, model.n_layers): Mapping(weight, weight[0]) for k, weight in enumerate(drawn)}
    sizes = {"n_tokens": {"fit": 1234}, "n_texts": {"fit": 56}}
    return Mappings(kind, side, side, by_pair, sizes)


def unfitted(design: Design) -> dict[str, Mappings | None]:
    """In the stead of `fit_lenses`."""
    model = design.setup.model
    return {LOGIT_LENS: None, AFFINE: maps(model, "affine"), TUNED: maps(model, "tuned")}


def next_of(ids: Ids, position: int) -> int:
    """What the source says next."""
    return LETTERS[digest("next", ids[: position + 1])[0] % len(LETTERS)]


Says = Callable[[str, State, Cell], int | None]  # method, state that is written, cell → the token, None for a wrong one


class Told:
    """A runner that runs no model: `says` gives the token for a state of a source, None for a wrong one.

    The source's own run says what a hash of its tokens picks. Where no source's state is written, it is always "x".
    """

    def __init__(self, says: Says, *, infinite: Callable[[State], bool] = lambda _: False) -> None:
        self.says, self.infinite = says, infinite
        self.cells: list[tuple[str, Cell]] = []
        self.fixed = tokenize(long_model(), "cat -> cat\n1135 -> 1135\nhello -> hello\n?").ids

    def __call__(self, transfer: Model | Transfer) -> "_Run":
        mappings = transfer.mappings if isinstance(transfer, Transfer) else None
        return _Run(self, {None: "", "affine": AFFINE, "tuned": TUNED}[None if mappings is None else mappings.kind])

    def method(self, lens: str, cell: Cell) -> str:
        assert cell.write is not None
        if cell.write.site.layer == long_model().n_layers:
            return lens or LOGIT_LENS
        return FIXED_PROMPT if cell.target_ids == self.fixed else RANDOM_PROMPT

    def result(self, index: int, lens: str, cell: Cell) -> Result:
        if cell.readout.kind == "candidates":
            return Result(index, None, None, None, logprobs=(-PLAIN,) * len(cell.candidates))
        vector = cell.write.vectors[0] if cell.write is not None else None
        token = families.tiny_tokenizer().encode("x")[0]
        own = None if cell.compare is None else next_of(cell.compare.ids, cell.compare.position)
        if isinstance(vector, State):
            said = self.says(self.method(lens, cell), vector, cell)
            token = LETTERS[(LETTERS.index(own or LETTERS[0]) + 1) % len(LETTERS)] if said is None else said
        top = (_top(token),)
        if own is None:
            return Result(index, top[0].token, (token,), "length", top)
        mine = isinstance(vector, State) and (vector.ids, vector.position) == (cell.compare.ids, cell.compare.position)
        nats = RIGHT if token == own else WRONG if mine else OTHER
        if isinstance(vector, State) and self.infinite(vector):
            nats = float("inf")
        return Result(
            index, top[0].token, (token,), "length", top, source_top=_top(own), surprisal_under_source=nats,
            surprisal_under_patched=nats + 1,
        )  # fmt: skip


class _Run:
    def __init__(self, told: Told, lens: str) -> None:
        self.told, self.lens = told, lens

    def run(self, plan: Plan) -> Iterator[Result]:
        for index, cell in enumerate(plan.cells):
            self.told.cells.append((self.lens, cell))
            yield self.told.result(index, self.lens, cell)


def _top(token: int) -> TopToken:
    return TopToken(families.tiny_tokenizer().decode([token]), token, -0.1)


# Of 8 layers: where each method is right. Token identity is ahead of every lens above, and behind the maps below.
PLANTED = {FIXED_PROMPT: {5, 6, 7}, RANDOM_PROMPT: {6, 7}, LOGIT_LENS: {7}, AFFINE: {1, 2, 7}, TUNED: {1, 2, 6, 7}}


def planted(layers: dict[str, set[int]] = PLANTED, **options: Callable[[State], bool]) -> Told:
    """Each method says at its `layers`, and at n_layers, what the source of the state says next; donors say theirs."""

    def says(method: str, state: State, _: Cell) -> int | None:
        known = state.layer in layers[method] or state.layer == long_model().n_layers
        return next_of(state.ids, state.position) if known else None

    return Told(says, **options)


def guessing(salt: str = "a", n: int = 4) -> Told:
    """Whatever the state: one of `n` tokens that a hash of the cell picks. Sources say one of the same."""

    def says(_: str, state: State, cell: Cell) -> int:
        if state.layer == long_model().n_layers:
            return next_of(state.ids, state.position)
        return LETTERS[digest(salt, cell.identity())[0] % n]

    return Told(says)
