"""Relations in the TSV form of the paper's code."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import HEADER, write_table
from patchscopes.data import load_relations
from patchscopes.errors import DataError

TARGET = "On the map, the planet of x"


def test_rows_of_a_subject_are_its_contexts(tmp_path: Path) -> None:
    data = load_relations(
        write_table(
            tmp_path / "moon_planet.tsv",
            ("Phobos", "Mars", TARGET, " the probe saw Phobos, and left"),
            ("Phobos", "Mars", TARGET, 'as "Phobos" grew\nlarger'),
            ("Phobos", "Mars", TARGET, " the probe saw Phobos again"),
            ("Phobos", "Mars", TARGET, "Phobos"),
            ("Phobos", "Mars", TARGET, " a Phobosian day"),
            ("Io", "Jupiter", TARGET, ""),
        )
    )
    (moons,) = data.items
    assert moons.name == "moon planet"
    assert moons.prompt_templates == ("On the map, the planet of {}",)
    phobos, io = moons.facts
    assert phobos.contexts == ("the probe saw {}", 'as "{}')
    assert moons.contexts_of(phobos) == phobos.contexts
    assert (io.subject, io.object, moons.contexts_of(io)) == ("Io", "Jupiter", moons.contexts)
    assert data.n_read == 2
    assert data.notes[0].startswith("moon_planet.tsv: 6 rows are 2 samples; in 3 of the rows")


def test_a_subject_with_two_answers_is_left_out(tmp_path: Path) -> None:
    rows = [("Io", "Jupiter", TARGET, ""), ("io", "Saturn", TARGET, ""), ("Titan", "Saturn", TARGET, "")]
    data = load_relations(write_table(tmp_path / "moons.tsv", *rows))
    assert [fact.subject for fact in data.items[0].facts] == ["Titan"]
    assert data.counts() == {"subject given twice with different answers": 2}
    assert data.n_read == 3


def test_each_row_without_subject_or_object_is_counted(tmp_path: Path) -> None:
    rows = [("Io", "", TARGET, ""), ("Io", "", TARGET, ""), ("", "Mars", TARGET, ""), ("Titan", "Saturn", TARGET, "")]
    data = load_relations(write_table(tmp_path / "moons.tsv", *rows))
    assert (data.n_read, data.counts()) == (4, {"subject or object is empty": 3})


@pytest.mark.parametrize(
    ("target", "template"),
    [
        ("The planet of x", "The planet of {}"),
        ("The x-ray planet of x", "The x-ray planet of {}"),
        ("What x goes around", "What {} goes around"),
        ("The planet of Phobos", "The planet of {}"),
        ("The planet of {}", "The planet of {}"),
        ("The axis of Phobos", "The axis of {}"),
    ],
)
def test_templates(tmp_path: Path, target: str, template: str) -> None:
    data = load_relations(write_table(tmp_path / "moons.tsv", ("Phobos", "Mars", target, "")))
    assert data.items[0].prompt_templates == (template,)


def test_a_template_without_a_place_for_the_subject_is_left_out(tmp_path: Path) -> None:
    rows = [("Phobos", "Mars", TARGET, ""), ("Io", "Jupiter", "The planet", "")]
    data = load_relations(write_table(tmp_path / "moons.tsv", *rows))
    assert data.counts() == {"template without exactly one {}": 1}
    assert data.n_read == 2


def test_escaped_and_quoted_text(tmp_path: Path) -> None:
    data = load_relations(write_table(tmp_path / "moons.tsv", ('the "Moon"\nX', "M\\u00e1ni", TARGET, "")))
    assert (data.items[0].facts[0].subject, data.items[0].facts[0].object) == ('the "Moon"\nX', "Máni")
    assert data.notes == ("moons.tsv: 1 text was escaped twice and is decoded",)


def test_rows_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    path = write_table(tmp_path / "moons.tsv", ("Phobos", "Mars", TARGET, ""))
    with path.open("a") as file:
        file.write("1\t1\tThe planet of x\t-1\tJup\n\n2\t" * 2 + "\n" + "\t".join("123456789"))
    data = load_relations(path)
    assert data.counts() == {"row does not have the columns of the header": 4}
    assert [exclusion.item for exclusion in data.excluded][:2] == ["moons: line 3", "moons: line 5"]
    assert data.n_read == 5


def test_missing_columns(tmp_path: Path) -> None:
    header = tuple(column for column in HEADER if column not in ("object", "prompt_target"))
    path = write_table(tmp_path / "moons.tsv", ("Phobos", "Mars", TARGET, ""), header=header)
    with pytest.raises(DataError, match=r"moons\.tsv has no column object, prompt_target; it needs subject, object, p"):
        load_relations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"moons\.tsv has no column subject"),
        ("subject\tobject\tprompt_target\n", r"moons\.tsv has no samples; give at least one"),
        ("subject\tobject\tprompt_target\nIo\n", "no samples, only 1 rows without the columns"),
        ('subject\tobject\tprompt_target\n"Io\tJupiter\tx\n', r"not a table .* at line 2; a text that holds a quote"),
        ('subject\tobject\tprompt_target\n"I"o\tJupiter\tx\n', "not a table that can be read"),
        ("subject\tobject\tprompt_target\nIo\tJupiter\tThe planet\n", "no template with exactly one {}"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "moons.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_relations(path)


def test_a_folder_of_tables(tmp_path: Path) -> None:
    write_table(tmp_path / "b_c.tsv", ("Phobos", "Mars", TARGET, ""))
    write_table(tmp_path / "a.tsv", ("Io", "Jupiter", TARGET, ""))
    assert [one.name for one in load_relations(tmp_path).items] == ["a", "b c"]


WORDS = st.sampled_from(["", "Io", "io", "Titan", 'T"', "a\nb", "\\u00e9"])


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, st.just(TARGET), st.sampled_from(["", "at Io", "Io", "see Titan now"]))))
def test_every_subject_read_is_a_fact_or_an_exclusion(rows: list[tuple[str, str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder) / "moons.tsv", ("Rhea", "Saturn", TARGET, ""), *rows)
        data = load_relations(table)
    found = {fact.subject.casefold() for fact in data.items[0].facts}
    left_out = [exclusion for exclusion in data.excluded if exclusion.kind == "sample"]
    assert len(found) + len(left_out) == data.n_read
    named = {exclusion.item.removeprefix("moons: ").casefold() for exclusion in left_out}
    assert all(subject.replace("\\u00e9", "é").casefold() in found | named for subject, *_ in rows if subject)
