"""What of a text is prose, what is left out and why, and that no section stands in two parts of a split."""

import hashlib
import sys
from pathlib import Path

import pytest

from patchscopes.data import Passage, load_prose, split_sections
from patchscopes.data import prose as prose_module
from patchscopes.data.prose import MAX_CHARACTERS, SECTION_PASSAGES
from patchscopes.errors import DataError, OptionError

PLAIN = "The river rises in the hills and runs for many miles through the flat country to the sea."
OTHER = "Nobody in the village knew when the old mill by the bridge had been built, or by whom."


def texts_of(path: Path, text: str) -> tuple[str, ...]:
    path.write_text(text, encoding="utf-8")
    return tuple(passage.text for passage in load_prose(path).items)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN.replace("and runs", "and\nruns"), PLAIN),
        (f"* {PLAIN}", PLAIN),
        (f"   12. {PLAIN.replace('and', 'and' + chr(10) + '       ')}", PLAIN),
        (f"> {PLAIN}", PLAIN),
        (PLAIN.replace("many miles", "*many miles*").replace("flat", "**flat**"), PLAIN),
        (PLAIN.replace("country", "[country](https://example.org/x)"), PLAIN),
        (PLAIN.replace("hills", "``hills``").replace("sea", ":term:`sea`") + " [3]", PLAIN),
        ("The well-\nknown river rises in the hills, and runs to the sea.", None),
        (PLAIN.replace("hills", "hills (*args, **kwargs)"), PLAIN.replace("hills", "hills (*args, **kwargs)")),
        (f"river(source, mouth)\n   {PLAIN}", PLAIN),
    ],
)
def test_paragraphs_come_out_as_plain_lines(tmp_path: Path, text: str, expected: str | None) -> None:
    expected = expected or "The well-known river rises in the hills, and runs to the sea."
    assert texts_of(tmp_path / "a.txt", text) == (expected,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The Mill by the Bridge, and When and by Whom It Was Built\n=========", "heading"),
        ("# The Mill by the Bridge, and When and by Whom It Was Built", "heading"),
        (">>> The mill by the bridge was built when nobody in the village was there.", "code or grammar"),
        (f"```\n{PLAIN}\n\n{OTHER}\n```", "code or grammar"),
        ('the_mill ::= "the" "mill" "by" "the" "bridge" "and" "the" "village"', "code or grammar"),
        ("+------+------+\n| The mill by the bridge was built | when nobody was there. |", "table"),
        (".. note:: The mill by the bridge was built when nobody was there.", "directive or other markup"),
        ("The mill was built.", "fewer than 8 words"),
        ("for stone in stones: mill.add(stone) and bridge.add(stone) or village.leave()", "does not begin and end"),
        ("The mill by the bridge was built when nobody in the village was there", "does not begin and end"),
        ("X = [(a, b, c), (d, e, f)] + {1: 2, 3: 4} and one two three four five six seven.", "too few letters"),
        (PLAIN, "passage given twice"),
    ],
)
def test_what_is_no_prose_is_counted_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.md").write_text(f"{PLAIN}\n\n{text}\n\n{OTHER}\n", encoding="utf-8")
    data = load_prose(tmp_path / "a.md")
    assert [passage.text for passage in data.items] == [PLAIN, OTHER]
    (left_out,) = data.excluded
    assert left_out.reason.startswith(reason)
    assert left_out.kind == "passage"
    assert data.n_read == 3


def test_the_same_paragraph_counts_once_over_all_files_however_it_is_wrapped(tmp_path: Path) -> None:
    (tmp_path / "b.rst").write_text("   " + PLAIN.replace(" runs", "\n   runs"), encoding="utf-8")
    (tmp_path / "a.txt").write_text(f"{OTHER}\n\n{PLAIN}", encoding="utf-8")
    data = load_prose(tmp_path)
    assert [(passage.text, passage.section) for passage in data.items] == [(OTHER, "a.txt"), (PLAIN, "a.txt")]
    assert data.counts() == {"passage given twice": 1}
    assert data.notes == ("b.rst: no passage is left",)
    both = (tmp_path / "a.txt").read_bytes() + (tmp_path / "b.rst").read_bytes()
    assert data.sha256 == hashlib.sha256(both).hexdigest()


def test_long_paragraphs_are_parted_between_sentences(tmp_path: Path) -> None:
    sentences = [f"{PLAIN[:-1]}, number {n}." for n in range(60)]
    texts = texts_of(tmp_path / "a.txt", " ".join(sentences))
    assert len(texts) > 1
    assert " ".join(texts) == " ".join(sentences)
    assert max(map(len, texts)) <= MAX_CHARACTERS


def test_a_long_file_has_several_sections(tmp_path: Path) -> None:
    lines = [f"{PLAIN[:-1]}, number {n}." for n in range(2 * SECTION_PASSAGES + 1)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    data = load_prose(tmp_path / "a.txt")
    assert [passage.text for passage in data.items] == lines
    assert sorted({passage.section for passage in data.items}) == ["a.txt, part 1", "a.txt, part 2", "a.txt, part 3"]


def test_what_holds_no_prose_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("mill()\n\nbridge()\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no passage of prose \(fewer than 8 words: 2\); give text in paragraphs"):
        load_prose(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"give \*\.txt or \*\.md or \*\.rst"):
        load_prose(tmp_path / "a.pdf")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prose(tmp_path)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="without pydoc_data"):
        load_prose()


def test_pythons_topics_are_enough_prose_to_fit_on() -> None:
    data = load_prose()
    assert data == load_prose(), "the same each time"
    assert len(data.items) + len(data.excluded) == data.n_read
    assert sum(len(passage.text) for passage in data.items) > 200_000
    assert len({passage.text for passage in data.items}) == len(data.items)
    assert data.counts()[prose_module.AGAIN] > 100, "topics repeat each other"
    assert not any(">>>" in passage.text or "::=" in passage.text for passage in data.items)
    sections = [passage.section for passage in data.items]
    assert sections == sorted(sections)
    assert len(set(sections)) > 50


def test_a_split_keeps_sections_whole() -> None:
    passages = load_prose().items
    parts = split_sections(passages, (0.8, 0.1, 0.1), seed=3)
    assert sorted((p for part in parts for p in part), key=passages.index) == list(passages)
    sections = [{passage.section for passage in part} for part in parts]
    assert not any(a & b for place, a in enumerate(sections) for b in sections[place + 1 :])
    n_characters = [sum(len(passage.text) for passage in part) for part in parts]
    assert [n / sum(n_characters) for n in n_characters] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert all(list(part) == sorted(part, key=passages.index) for part in parts)
    assert parts == split_sections(passages, (0.8, 0.1, 0.1), seed=3)
    assert parts != split_sections(passages, (0.8, 0.1, 0.1), seed=4)


def test_every_part_has_something() -> None:
    passages = [Passage("x" * 1000, "large"), Passage("x", "small"), Passage("xx", "other")]
    for seed in range(5):
        assert all(split_sections(passages, (0.98, 0.01, 0.01), seed=seed))


def test_splits_that_cannot_be_made() -> None:
    with pytest.raises(OptionError, match=r"shares are \(0\.9, 0\.2\); they must be above 0 and add up to 1"):
        split_sections([Passage(PLAIN, "a")], (0.9, 0.2))
    with pytest.raises(DataError, match="1 passages in 1 sections cannot be split into 2 parts"):
        split_sections([Passage(PLAIN, "a")], (0.9, 0.1))
