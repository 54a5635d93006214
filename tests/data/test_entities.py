"""Entities: the form, the mechanical rules, and agreement with a second pass."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import entity, write
from patchscopes.data import DataSet, Entity, load_entities
from patchscopes.errors import DataError

GOOD = entity("Old Mill")


def load(tmp_path: Path, *entries: object) -> DataSet[Entity]:
    return load_entities(write(tmp_path / "works.json", list(entries)))


def names(data: DataSet[Entity]) -> list[str]:
    return [one.name for one in data.items]


def second(**more: object) -> dict[str, object]:
    return {"type": "work", "description": "A bridge with Seven Arches.", "facts": [], **more}


def test_form(tmp_path: Path) -> None:
    more = {"type_keywords": ["bridge"], "aliases": ["The Paley"], "where": "a map"}
    data = load(tmp_path, entity(**more, part="Grace", part_keywords=["elegance"], bare="Paley Bridge"))
    assert data.items == (
        Entity(
            name="Grace Paley Bridge",
            type="work",
            tier=2,
            description="Bridge over a made-up river.",
            keywords=("made-up river", "seven arches"),
            type_keywords=("bridge",),
            aliases=("The Paley",),
            part="Grace",
            part_keywords=("elegance",),
            bare="Paley Bridge",
            where="a map",
        ),
    )
    assert (data.n_read, data.excluded, data.notes) == (1, (), ())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entity(" "), "name is empty"),
        (entity(type="ship"), "type is none of person, place, work, organisation, event"),
        (entity(tier=4), "tier is not 1, 2 or 3"),
        (entity(tier="1"), "tier is not 1, 2 or 3"),
        (entity(tier=True), "tier is not 1, 2 or 3"),
        (entity(description=" "), "description is empty"),
        (entity(keywords=["", " "]), "no keywords"),
        (entity(keywords=["paley", "Bridge"]), "keyword stands in the name"),
        (entity("old mill"), "name given twice with different entries"),
        (GOOD, "name given twice"),
    ],
)
def test_left_out_whole(tmp_path: Path, bad: dict[str, object], reason: str) -> None:
    data = load(tmp_path, entity("New Mill"), GOOD, bad)
    assert data.counts()[reason] == (2 if "different" in reason else 1)
    assert [e.kind for e in data.excluded] == ["entity"] * len(data.excluded)
    assert len(data.items) + len(data.excluded) == data.n_read == 3


def test_the_first_reason_counts(tmp_path: Path) -> None:
    data = load(tmp_path, entity(tier=7), entity(tier=8), GOOD)
    assert data.counts() == {"name given twice with different entries": 2}


def test_a_keyword_in_the_name_goes_alone_where_others_remain(tmp_path: Path) -> None:
    data = load(tmp_path, entity(keywords=["PALEY", "Pale", ""]))
    assert data.items[0].keywords == ("Pale",)
    assert [(e.item, e.reason, e.kind) for e in data.excluded] == [
        ("Grace Paley Bridge: PALEY", "keyword stands in the name", "keyword"),
        ("Grace Paley Bridge", "keyword or alias is empty", "keyword"),
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"part": "Wales", "part_keywords": ["country"]}, "part or bare form does not stand in the name"),
        ({"part": "Grace"}, "part without keywords"),
        ({"part": "Grace", "part_keywords": [" "]}, "part without keywords"),
        ({"part_keywords": ["country"]}, "keywords of a part without the part"),
        ({"bare": "Bridges"}, "part or bare form does not stand in the name"),
        ({"part": "Grace", "part_keywords": ["elegance"], "second": second()}, "the two passes disagree on the part"),
        (
            {"part": "Grace", "part_keywords": ["elegance"], "second": second(part="Elegances.")},
            "the two passes disagree on the part",
        ),
    ],
)
def test_a_part_goes_alone(tmp_path: Path, more: dict[str, object], reason: str) -> None:
    data = load(tmp_path, entity(**more))
    (one,) = data.items
    assert (one.part, one.part_keywords, one.bare) == (None, (), None)
    assert reason in data.counts()
    assert all(e.kind in ("part", "bare", "keyword") for e in data.excluded)


def test_a_part_that_the_second_pass_tells(tmp_path: Path) -> None:
    told = second(part="A word for Elegance.")
    data = load(tmp_path, entity(part="Grace", part_keywords=["elegance"], second=told))
    assert (data.items[0].part, data.excluded) == ("Grace", ())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"type": "Work"},
        {"description": "x", "facts": ["It has seven arches."]},
        {"description": "Also called the Long One."},
    ],
)
def test_passes_agree(tmp_path: Path, more: dict[str, object]) -> None:
    assert names(load(tmp_path, entity(aliases=["long one"], second=second(**more)))) == ["Grace Paley Bridge"]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (second(type="place"), "the two passes disagree on the type"),
        (None, "the two passes disagree on the type"),
        (second(description="Seventeen arches."), "no keyword stands in the second description"),
        (second(description="The Grace Paley."), "no keyword stands in the second description"),
    ],
)
def test_passes_disagree(tmp_path: Path, other: object, reason: str) -> None:
    bad = entity(keywords=["seven arches", "Paley"], second=other)
    data = load(tmp_path, bad, entity("Old Mill", second=second()))
    assert names(data) == ["Old Mill"]
    assert data.counts() == {reason: 1}


def test_without_a_second_description_that_others_of_the_file_have(tmp_path: Path) -> None:
    data = load(tmp_path, entity(), entity("Old Mill", second=second()))
    assert names(data) == ["Old Mill"]


def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "b.json", [entity(), GOOD])
    write(tmp_path / "a.json", [entity("New Mill"), GOOD])
    data = load_entities(tmp_path)
    assert names(data) == ["New Mill", "Old Mill", "Grace Paley Bridge"]
    assert data.counts() == {"name given twice": 1}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "x"}, r"works\.json must hold a JSON list, one object for each entity"),
        (
            [{"name": "x", "type": "work"}],
            r'entity 1 of works\.json has no "tier", "description", "keywords"; it needs',
        ),
        ([entity(keywords="x")], '"keywords" must be a list of texts, not "x"'),
        ([entity(second="x")], r'"second" of entity 1 of works\.json must be a JSON object with keys, not "x"'),
        ([entity(tier=9)], r"no entity that can be used \(tier is not 1, 2 or 3: 1\)"),
        ([], r"no entity that can be used \(none was read\)"),
    ],
)
def test_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_entities(write(tmp_path / "works.json", value))


ENTRIES = st.builds(
    entity,
    st.sampled_from(["", "A", "a", "B c", "D"]),
    type=st.sampled_from(["work", "ship"]),
    tier=st.integers(0, 2),
    keywords=st.lists(st.sampled_from(["", "b", "seven arches"]), max_size=2),
)


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=8))
def test_every_entity_read_is_kept_or_an_exclusion(entries: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = load_entities(write(Path(folder) / "works.json", [entity(), *entries]))
    assert len(data.items) + sum(e.kind == "entity" for e in data.excluded) == data.n_read == len(entries) + 1
