"""What ships: nothing is left out for a mechanical rule, and the rules that loading does not check hold as well."""

import pytest

from data_files import entity, relation, sample, write
from data_rules import broken_entities, broken_relations
from patchscopes.data import entities, load_entities, load_relations, relations
from patchscopes.errors import DataError

# What a second pass may decide; all else is a slip in our files.
DISAGREEMENTS = {
    relations.DISAGREE,
    entities.OTHER_TYPE,
    entities.NOT_TOLD,
    entities.PART_NOT_TOLD,
}

no_relations = pytest.mark.skipif(not relations.OWN.is_dir(), reason="no relations are shipped")
no_entities = pytest.mark.skipif(not entities.OWN.is_dir(), reason="no entities are shipped")


@no_relations
def test_own_relations() -> None:
    data = load_relations()
    assert set(data.counts()) <= DISAGREEMENTS
    assert data.notes == ()
    assert broken_relations(data) == []


@no_entities
def test_own_entities() -> None:
    data = load_entities()
    assert set(data.counts()) <= DISAGREEMENTS
    assert data.notes == ()
    assert broken_entities(data) == []


def test_without_data_of_our_own_the_error_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(relations, "OWN", tmp_path / "relations")
    monkeypatch.setattr(entities, "OWN", tmp_path / "entities")
    with pytest.raises(DataError, match="no relations are shipped with this version; give the path"):
        load_relations()
    with pytest.raises(DataError, match="no entities are shipped with this version; give the path"):
        load_entities()


def test_own_data_is_what_stands_in_its_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(relations, "OWN", tmp_path / "relations")
    monkeypatch.setattr(entities, "OWN", tmp_path / "entities")
    write(tmp_path / "relations" / "moons.json", relation(sample("Phobos", "Mars")))
    write(tmp_path / "entities" / "works.json", [entity()])
    assert (load_relations().name, load_relations().source) == ("own relations", "own")
    assert (load_entities().name, load_entities().source) == ("own entities", "own")


def test_the_rules_find_what_is_broken(tmp_path) -> None:
    moons = relation(
        sample("Phobos", "Mars", where="x"), sample("Marsia", "Mars", aliases=["MARS"]), contexts=["On Mars, {}"]
    )
    found = "\n".join(broken_relations(load_relations(write(tmp_path / "a.json", moons))))
    for word in ("three templates", "five contexts", "question", "one class", "names an answer", "leaks", "nowhere"):
        assert word in found
    assert "Marsia has an answer twice" in found
    bridge = entity(part="Grace", part_keywords=["bridge"], bare="Grace Paley Bridge")
    found = "\n".join(broken_entities(load_entities(write(tmp_path / "b.json", [bridge]))))
    for word in ("three keywords", "nowhere", "stands in the name", "of the part and of the whole", "whole name"):
        assert word in found
