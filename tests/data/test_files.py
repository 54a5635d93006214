"""How files are found, read and hashed, and that unreadable ones are refused with their place."""

import hashlib
from pathlib import Path

import pytest

from data_files import entity, relation, sample, write
from patchscopes.data import load_entities, load_relations
from patchscopes.errors import DataError

MOONS = relation(sample("Phobos", "Mars"))


def test_the_hash_is_that_of_the_bytes_in_the_order_of_names(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "x" / "b.json", relation(sample("Io", "Jupiter"), name="b")),
        write(tmp_path / "x" / "a" / "c.json", relation(sample("Io", "Jupiter"), name="c")),
        write(tmp_path / "x" / "a.json", MOONS),
    ]
    data = load_relations(tmp_path / "x")
    ordered = paths[2].read_bytes() + paths[1].read_bytes() + paths[0].read_bytes()
    assert data.sha256 == hashlib.sha256(ordered).hexdigest()
    assert [one.name for one in data.items] == ["moon planet", "c", "b"]
    assert load_relations(str(tmp_path / "x")) == data


def test_the_hash_is_that_of_what_is_read_and_of_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "x" / "a.json", MOONS)
    alone = load_relations(path).sha256
    write(tmp_path / "x" / ".ipynb_checkpoints" / "a.json", MOONS)
    write(tmp_path / "x" / "._a.json", MOONS)
    (tmp_path / "x" / "README.md").write_text("about")
    (tmp_path / ".hidden").mkdir()
    moved = (tmp_path / "x").rename(tmp_path / ".hidden" / "y")
    assert load_relations(moved).sha256 == alone
    write(moved / "a.json", {**MOONS, "question": "?"})
    assert load_relations(moved).sha256 != alone


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf8_is_told_by_byte_and_line(tmp_path: Path, mark: bytes) -> None:
    path = write(tmp_path / "moons.json", relation(sample("Phobos", "Mars")))
    path.write_bytes(mark + path.read_bytes())
    assert load_relations(path).n_read == 1
    path.write_bytes(mark + b'{\n"name": "\xe9"}')
    with pytest.raises(DataError, match=r"moons\.json is not UTF-8: byte 0xe9 in line 2; convert it, e\.g\. iconv"):
        load_relations(path)


def test_json_that_is_none_is_told_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "moons.json"
    path.write_text('{\n"name": x}')
    with pytest.raises(DataError, match=r"moons\.json is not JSON: Expecting value at line 2, column 9; mend it there"):
        load_relations(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        load_relations(path)


def test_paths_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data: no \*\.json or \*\.tsv is in it, or below"):
        load_relations(tmp_path)
    with pytest.raises(DataError, match=r"holds no data: no \*\.json is in it"):
        load_entities(tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*nothing\.json: No such file"):
        load_relations(tmp_path / "nothing.json")
    (tmp_path / "moons.csv").write_text("x")
    with pytest.raises(DataError, match=r"not a kind of data that can be read; give \*\.json or \*\.tsv, or a folder"):
        load_relations(tmp_path / "moons.csv")


def test_entities_are_hashed_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "works.json", [entity()])
    assert load_entities(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == load_entities(tmp_path).sha256
