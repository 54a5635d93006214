"""One item, layer by layer, for a reader who sees it for the first time: texts, controls, and what the write changes.

The contrast of a token is ln p_patched − ln p_unpatched: how much likelier the write makes this token of the patched
text, after the same tokens before it. Above 0 the state says it; near 0 the prompt alone says as much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from patchscopes.readouts import decode
from patchscopes.run import run_cells
from patchscopes.spec import Cell, Readout, Request
from patchscopes.studies.setup import Setup


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a patched text with its contrast, in nats."""

    text: str
    contrast: float


def contrasts(setup: Setup, requests: Sequence[Request], token_ids: Sequence[tuple[int, ...]]) -> list[list[Word]]:
    """For each patched cell and the tokens it wrote, each token's ln p_patched − ln p_unpatched.

    The tokens are scored as candidates of growing length, with and without the write, and differences taken.
    """
    cells: dict[str, Cell] = {}
    wanted: list[tuple[str, str]] = []
    for request, ids in zip(requests, token_ids, strict=True):
        assert request.cell is not None
        growing = tuple(ids[: k + 1] for k in range(len(ids)))
        patched = replace(request.cell, readout=Readout("candidates"), candidates=growing)
        plain = replace(patched, write=None)
        for cell in (patched, plain):
            cells.setdefault(cell.identity(), cell)
        wanted.append((patched.identity(), plain.identity()))
    results = run_cells(setup.model, setup.runner(setup.model), list(cells.values()), setup.budget())
    logprobs = {identity: result.logprobs or () for identity, result in zip(cells, results, strict=True)}
    return [
        _words(setup, ids, logprobs[with_write], logprobs[without])
        for ids, (with_write, without) in zip(token_ids, wanted, strict=True)
    ]


def _words(setup: Setup, ids: Sequence[int], patched: Sequence[float], plain: Sequence[float]) -> list[Word]:
    found, before = [], 0.0
    for token, a, b in zip(ids, patched, plain, strict=True):
        found.append(Word(decode(setup.model.tokenizer, [token]), (a - b) - before))
        before = a - b
    return found


def sentence(text: str) -> str:
    """A text as a table shows it: one line, nothing that Markdown would take for its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "\\<") or "(nothing)"


def table_of(
    *,
    title: str,
    opening: str,
    rows: Sequence[tuple[str, str, str, Sequence[Word]]],
    controls: Mapping[str, str],
    closing: str,
) -> str:
    """The page as Markdown; `rows` are (layer, text, what it names, its tokens with their contrasts)."""
    head = [
        "| ℓ | the text goes on | it names | tokens that the write makes likelier (contrast, nats) |",
        "|---|---|---|---|",
    ]
    body = [f"| {layer} | {text} | {names} | {_strongest(words)} |" for layer, text, names, words in rows]
    beside = [f"- {label}: {text}" for label, text in controls.items()]
    reading = (
        "How to read it: a word counts for the state only where the controls do not say it too. The contrast of a "
        "token is ln p with the write minus ln p without it, after the same tokens before: 0 means that the prompt "
        "alone would have said it as readily, 2.3 that the write makes it ten times as likely. A layer that says "
        "nothing of the entity has not shown that the entity is absent from the state, only that this prompt does not "
        "bring it out."
    )
    return "\n".join(
        [f"# {title}", "", opening, "", *head, *body, "", "Beside it:", "", *beside, "", closing, "", reading, ""]
    )


def _strongest(words: Sequence[Word], n: int = 4) -> str:
    """The tokens with the highest contrasts, in the order of the text."""
    top = sorted(sorted(range(len(words)), key=lambda k: -words[k].contrast)[:n])
    return ", ".join(f"“{shown_token(words[k].text)}” {_signed(words[k].contrast)}" for k in top) or "–"


def shown_token(text: str) -> str:
    """A token; white space, which many are, by signs for it."""
    return sentence(text) if text.strip() else text.replace("\n", "↵").replace(" ", "␣") or "(end)"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
