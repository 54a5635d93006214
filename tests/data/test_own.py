"""What ships: nothing is left out for a mechanical rule, and the rules that loading does not check hold as well."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

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


# The paper's twelve (its appendix on feature extraction), by the names of our files' relations.
OF_THE_PAPER = {
    "company CEO", "country currency", "food from country", "fruit inside color", "fruit outside color",
    "object superclass", "person position in sport", "person sport", "product company", "star constellation",
    "substance phase", "task done by tool",
}  # fmt: skip


def raw_entries(folder: Path) -> list[dict[str, Any]]:
    """The objects of every file of a folder, as JSON has them."""
    values = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]


def names_as_words(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as whole words; not by the package's own matching."""
    return bool(re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", text.casefold()))


def test_own_relations() -> None:
    data = load_relations()
    assert set(data.counts()) <= DISAGREEMENTS
    assert data.notes == ()
    assert broken_relations(data) == []


def test_own_entities() -> None:
    data = load_entities()
    assert set(data.counts()) <= DISAGREEMENTS
    assert data.notes == ()
    assert broken_entities(data) == []


def test_there_are_enough_entities_of_every_kind() -> None:
    kept = load_entities().items
    assert len(kept) >= 200
    assert sum(one.part is not None for one in kept) >= 60
    assert sum(one.bare is not None for one in kept) >= 30
    by_type = Counter(one.type for one in kept)
    assert set(by_type) == set(entities.TYPES)
    assert min(by_type.values()) >= 25, by_type


def test_there_are_enough_relations_with_enough_facts() -> None:
    kept = {relation.name: relation for relation in load_relations().items}
    assert len(kept) >= 22
    assert {name: len(one.facts) for name, one in kept.items() if len(one.facts) < 25} == {}
    assert set(kept) >= OF_THE_PAPER | {"country capital", "country largest city"}


def test_a_capital_is_not_always_the_largest_city() -> None:
    """Else the two relations could not be told apart."""
    kept = {relation.name: relation for relation in load_relations().items}
    answers = [
        {fact.subject: {answer.casefold() for answer in fact.answers} for fact in kept[name].facts}
        for name in ("country capital", "country largest city")
    ]
    other = [
        country for country in answers[0] if country in answers[1] and not answers[0][country] & answers[1][country]
    ]
    assert len(other) >= 8, other


def test_everything_says_where_it_can_be_checked_and_what_a_second_pass_said() -> None:
    facts = [sample for entry in raw_entries(relations.OWN) for sample in entry["samples"]]
    said = raw_entries(entities.OWN)
    assert [entry for entry in (*facts, *said) if not entry.get("where", "").strip() or "second" not in entry] == []
    assert (len(facts), len(said)) == (load_relations().n_read, load_entities().n_read)


def test_every_relation_brings_sentences_of_its_own_which_name_no_object() -> None:
    entries = raw_entries(relations.OWN)
    few = [e["name"] for e in entries if len(set(e.get("contexts", ()))) < 5 or not e.get("carrier", "").endswith("{}")]
    assert few == []
    naming = [
        f"{entry['name']}: {text} names {sample['object']}"
        for entry in entries
        for text in (*entry["contexts"], entry["carrier"])
        for sample in entry["samples"]
        if names_as_words(text, sample["object"])
    ]
    assert naming == []


def test_the_documentation_counts_what_ships() -> None:
    """docs/data.md says how much there is, and how much the second pass left."""
    page = " ".join((Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split())
    people, facts = load_entities(), load_relations()
    n_parts = sum(bool(entry.get("part")) for entry in raw_entries(entities.OWN))
    n_kept = sum(len(relation.facts) for relation in facts.items)
    for said in (
        f"{people.n_read:,} entities were written and {len(people.items):,} are kept",
        f"{n_parts - sum(one.part is not None for one in people.items)} of {n_parts} parts of names are dropped",
        f"{facts.n_read:,} facts of {len(facts.items)} relations were written and {n_kept:,} are kept",
    ):
        assert said in page


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
