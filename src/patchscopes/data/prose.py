"""Prose: files of text → paragraphs of English, for what is fitted on text (mappings, lenses).

By default the prose is the one that every Python carries: `pydoc_data.topics`, the language reference by topic, so that
a fit needs no network and no file. What is no prose (code, grammar, tables, headings, directives) is left out with the
reason, and so is a paragraph that stands there twice: topics repeat each other, and the same text on both sides of a
split would be a leak.

Axes: section (a topic, a file, or a part of a long file), passage.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchscopes.data.files import File, read_files, sha256_of, text_of
from patchscopes.data.items import DataSet, Exclusion, counted
from patchscopes.errors import DataError, OptionError
from patchscopes.rng import philox

SUFFIXES = (".txt", ".md", ".rst")
MIN_WORDS = 8
MAX_CHARACTERS = 2000  # of a passage, some 500 tokens: longer paragraphs are parted between sentences
LETTERS = 0.8  # letters and spaces, as a share of a passage
SECTION_PASSAGES = 50  # a file with more is several sections, so that one long file can be split as well

HEADING = "heading"
TABLE = "table"
CODE = "code or grammar"
DIRECTIVE = "directive or other markup"
SHORT = f"fewer than {MIN_WORDS} words"
NO_SENTENCE = "does not begin and end as a sentence"
NOT_LETTERS = "too few letters"
AGAIN = "passage given twice"

_RULE = re.compile(r"\s*([=*~^#\"'+-])\1{2,}\s*")
_HEADING = re.compile(r"\s*#{1,6}\s")
_TABLE = re.compile(r"\s*(\+[-=+]+\+?\s*$|\|)")
_CODE = re.compile(r"\s*(>>>|\.\.\. |\$ |```|~~~)|.*::=")
_DIRECTIVE = re.compile(r"\s*(\.\. |:[\w -]+:(\s|$)|<|\[[\w^]+\]:)")
_BULLET = re.compile(r"\s*([*+•-]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|>|\[\d+\])\s+")
_BEGIN = re.compile(r"[\"'“‘(\[]*[A-Z0-9_]|[\"“]\S")
_END = re.compile(r"[.!?:][\"'”’)\]]*$")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[\"“(]?[A-Z])")
# Inline marks of reStructuredText and Markdown, of which the text stays.
_MARKS = (
    (re.compile(r":[a-z:]+:`~?([^`<>]+)(?: <[^`<>]+>)?`"), r"\1"),
    (re.compile(r"!?\[([^\]]+)\]\([^)\s]+\)"), r"\1"),
    (re.compile(r"(``?)([^`]+)\1_*"), r"\2"),
    (re.compile(r"(?<![\w*])(\*\*?)(\w(?:[^*]*[^*\s])?)\1(?![\w*])"), r"\2"),
    (re.compile(r" \[(?:\d+|\^\w+)\]_?(?=[\s.,;:)]|$)"), ""),
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph of prose on one line, and the `section` that it stands in."""

    text: str
    section: str


def load_prose(path: str | os.PathLike[str] | None = None) -> DataSet[Passage]:
    """The passages in a .txt, .md or .rst file or in a folder of such; those in Python's own topics for None.

    Sections are in the order of their names, passages in the order of the text. Raises DataError for what cannot be
    read, and where no passage is left.
    """
    files = _topics() if path is None else read_files(path, SUFFIXES)
    source = "pydoc_data.topics" if path is None else os.fspath(path)
    seen: set[str] = set()
    passages: list[Passage] = []
    excluded: list[Exclusion] = []
    notes = []
    for file in files:
        found = _File(file, seen)
        passages += found.passages if path is None else _parted(file.name, found.passages)
        excluded += found.excluded
        if not found.passages:
            notes.append(f"{file.name}: no passage is left")
    if not passages:
        raise DataError(
            f"{source} has no passage of prose ({counted(excluded)}); give text in paragraphs of whole sentences."
        )
    return DataSet(
        name="Python's topics" if path is None else Path(path).name,
        items=tuple(passages),
        excluded=tuple(excluded),
        sha256=sha256_of(files),
        source=source,
        n_read=len(passages) + len(excluded),
        notes=tuple(notes),
    )


def split_sections(
    passages: Sequence[Passage], shares: Sequence[float], *, seed: int = 0
) -> tuple[tuple[Passage, ...], ...]:
    """`passages` in parts of about these `shares` of all characters, no section in two of them, drawn by `seed`.

    Within a part, passages keep their order. Raises OptionError for shares that are no parts of 1, DataError where
    there are fewer sections than parts.
    """
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise OptionError(f"shares are {tuple(shares)}; they must be above 0 and add up to 1, such as (0.9, 0.1).")
    sizes: dict[str, int] = {}
    for passage in passages:
        sizes[passage.section] = sizes.get(passage.section, 0) + len(passage.text)
    if len(sizes) < len(shares):
        raise DataError(
            f"{len(passages)} passages in {len(sizes)} sections cannot be split into {len(shares)} parts without a "
            f"section in two of them; give at least {len(shares)} texts or files, or one of more than "
            f"{SECTION_PASSAGES * (len(shares) - 1)} passages."
        )
    part_of = _dealt(sizes, shares, seed)
    return tuple(
        tuple(passage for passage in passages if part_of[passage.section] == part) for part in range(len(shares))
    )


def _dealt(sizes: dict[str, int], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Large sections first, those of like size in a drawn order, each to the part that lacks most.

    The last ones go to the parts that have none yet.
    """
    names = sorted(sizes)
    drawn = [names[place] for place in philox("split-sections", seed).permutation(len(names))]
    order = sorted(drawn, key=lambda name: -sizes[name].bit_length())
    lacking = [share * sum(sizes.values()) for share in shares]
    part_of: dict[str, int] = {}
    for place, name in enumerate(order):
        empty = [part for part in range(len(shares)) if part not in part_of.values()]
        open_to = empty if len(empty) == len(order) - place else range(len(shares))
        part = max(open_to, key=lacking.__getitem__)
        part_of[name] = part
        lacking[part] -= sizes[name]
    return part_of


def _topics() -> tuple[File, ...]:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte, and some builds of Python lack it
    except ImportError as error:
        raise DataError("this Python comes without pydoc_data.topics; give the path of a text instead.") from error
    return tuple(File(name, topics[name].encode()) for name in sorted(topics))


def _parted(name: str, passages: Sequence[Passage]) -> Iterator[Passage]:
    """The passages of a file, in sections of their own where they are many."""
    for place, passage in enumerate(passages):
        part = place // SECTION_PASSAGES + 1
        yield passage if len(passages) <= SECTION_PASSAGES else Passage(passage.text, f"{name}, part {part}")


class _File:
    """The passages of one file, and what was left out; `seen` has the passages of all files so far."""

    def __init__(self, file: File, seen: set[str]) -> None:
        self._name, self._seen = file.name, seen
        self.passages: list[Passage] = []
        self.excluded: list[Exclusion] = []
        for block in _blocks(text_of(file)):
            self._take(block)

    def _take(self, block: list[str]) -> None:
        if reason := _markup(block):
            self._leave(block[0], reason)
            return
        for lines in _pieces(block):
            for text in _bounded(_plain(_joined(lines))):
                reason = _why_not(text)
                if reason is None and text in self._seen:
                    reason = AGAIN
                if reason is not None:
                    self._leave(text, reason)
                    continue
                self._seen.add(text)
                self.passages.append(Passage(text, self._name))

    def _leave(self, text: str, reason: str) -> None:
        self.excluded.append(Exclusion(f"{self._name}: {text.strip()[:60]}", reason, "passage"))


def _blocks(text: str) -> Iterator[list[str]]:
    """Lines between blank ones; what stands between code fences is one block, blank lines and all."""
    block: list[str] = []
    fence = ""
    for line in [*text.expandtabs().splitlines(), ""]:
        mark = line.strip()[:3]
        if fence:
            block.append(line)
            fence = "" if mark == fence else fence
        elif mark in ("```", "~~~") and not _RULE.fullmatch(line):
            if block:
                yield block
            block, fence = [line], mark
        elif line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _markup(block: Sequence[str]) -> str | None:
    """What a block is that is no text at all; None where it may be some."""
    if any(_CODE.match(line) for line in block):
        return CODE
    if any(_TABLE.match(line) for line in block):
        return TABLE
    if any(_RULE.fullmatch(line) for line in block) or _HEADING.match(block[0]):
        return HEADING
    return DIRECTIVE if _DIRECTIVE.match(block[0]) else None


def _pieces(block: Sequence[str]) -> Iterator[list[str]]:
    """A block's paragraphs: a list's entries, and a term apart from what is indented below it."""
    piece: list[str] = []
    listed = False
    for line in block:
        bullet = _BULLET.match(line)
        below_term = len(piece) == 1 and not listed and _indent(line) > _indent(piece[0])
        if piece and (bullet or below_term):
            yield piece
            piece = []
        listed = bool(bullet) or (listed and bool(piece))
        piece.append(line[bullet.end() :] if bullet else line)
    yield piece


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: Sequence[str]) -> str:
    """Wrapped lines as one, words that were parted at a hyphen included."""
    text = ""
    for line in lines:
        parted = re.search(r"\w-$", text) and line.lstrip()[:1].islower()
        text += line.strip() if parted or not text else f" {line.strip()}"
    return re.sub(r"\s+", " ", text).strip()


def _plain(text: str) -> str:
    for mark, kept in _MARKS:
        text = mark.sub(kept, text)
    return text


def _bounded(text: str) -> Iterator[str]:
    """`text`, or its sentences in runs that are not too long; a longer sentence stays whole."""
    if len(text) <= MAX_CHARACTERS:
        yield text
        return
    run = ""
    for sentence in _SENTENCE_END.split(text):
        if run and len(run) + 1 + len(sentence) > MAX_CHARACTERS:
            yield run
            run = sentence
        else:
            run = f"{run} {sentence}" if run else sentence
    yield run


def _why_not(text: str) -> str | None:
    """Why a paragraph is no passage; None where it is one."""
    if len(re.findall(r"[^\W\d_]{2,}", text)) < MIN_WORDS:
        return SHORT
    if not (_BEGIN.match(text) and _END.search(text)):
        return NO_SENTENCE
    letters = sum(sign.isalpha() or sign == " " for sign in text)
    return NOT_LETTERS if letters < LETTERS * len(text) else None
