"""One field of a table, and how values are written in it."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

Kind = Literal["plain", "hit", "miss", "note"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of a table. A "note" is the table's own word, such as (inert), and no text of the model.

    A list, such as candidates in their order, has `parts`, all of them; `head` stands before it. Its `text` is what
    belongs in a line; a "…" at its end says that there are more.
    """

    text: str
    kind: Kind = "plain"
    head: str = ""
    parts: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """The text, or all parts of a list."""
        return self._first(len(self.parts)) if self.parts else self.text

    def within(self, width: int) -> str:
        """The text, or as many whole parts of a list as `width` columns hold, one at least."""
        if not self.parts or cell_len(self.text) <= width:
            return self.text
        fitting = [text for n in range(1, len(self.parts)) if cell_len(text := self._first(n)) <= width]
        return fitting[-1] if fitting else self._first(1)

    def _first(self, n: int) -> str:
        return f"{self.head}{' · '.join(self.parts[:n])}{' …' if n < len(self.parts) else ''}"


def listed(parts: Sequence[str], n_shown: int, *, head: str = "", kind: Kind = "plain") -> Entry:
    """A list of which a line shows `n_shown` at the most."""
    made = Entry("", kind, head, tuple(parts))
    return Entry(made._first(min(n_shown, len(parts))), kind, head, made.parts)


def percent(logprob: float) -> str:
    """A log-probability as a percentage; what rounds to nothing is "<1%"."""
    probability = math.exp(logprob) if not math.isnan(logprob) else math.nan
    return "<1%" if 0 < probability < 0.01 else "?" if math.isnan(probability) else f"{probability:.0%}"


def nats(value: float | None, *, signed: bool = False) -> str:
    """A number of nats to one decimal, with a minus that is as wide as the plus; a difference has its sign."""
    if value is None or math.isnan(value):
        return "?"
    text = f"{abs(value):.1f}" if math.isfinite(value) else "∞"
    if text == "0.0":
        return f"±{text}" if signed else text
    return f"−{text}" if value < 0 else f"+{text}" if signed else text


def escaped(text: str) -> str:
    """`text` on one line: line breaks as ⏎, tabs as ⇥, and as an escape what steers a terminal or reverses text."""
    signs = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
    return "".join(signs.get(c) or (c if _is_shown(c) else c.encode("unicode_escape").decode()) for c in text)


def _is_shown(character: str) -> bool:
    """False for controls, surrogates, line separators and what reverses the order of the text after it."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and not (
        "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    )


def cropped(text: str, width: int) -> str:
    """`text` on one line, cropped to `width` characters."""
    line = escaped(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def quoted(text: str, width: int) -> str:
    """`text` in quotes, on one line, cropped to `width` characters."""
    return f"“{cropped(text, width)}”"


def first_line(reason: str | None) -> str:
    """The first line of a reason, and … for what follows it."""
    lines = (reason or "no reason was given").strip().splitlines()
    return f"{escaped(lines[0])}{' …' if len(lines) > 1 else ''}" if lines else "no reason was given"


def ranges(layers: Sequence[int]) -> str:
    """Layers as ranges: 3–5, 9."""
    parts: list[list[int]] = []
    for layer in sorted(set(layers)):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
