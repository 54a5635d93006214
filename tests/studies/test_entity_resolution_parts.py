"""Parts of entity-resolution on odd names: misleading parts, sinks, what others have too, and what is copied."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_files import write
from patchscopes.data import Entity, load_entities
from patchscopes.prompts import resolve_positions, tokenize
from patchscopes.spec import Cell, State
from patchscopes.studies import entity_resolution, setup
from patchscopes.studies.entities import source
from patchscopes.studies.entity_resolution import design
from patchscopes.studies.report import Report
from study_cases import SPEED, SPOKEN, Saying, long_model, made_up, one_kind, planted, text_of


@pytest.fixture(scope="module", autouse=True)
def no_timing() -> Iterator[None]:
    """The model is not timed before each study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        yield


def small(folder: Path, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Report:
    """A small study of `entries`, whose states say their keywords at ℓ 1 and 2 of 4."""
    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, n_choosing=6, n_surprisal=6))
    data, runner = write(folder / "entities.json", entries), planted(entries, (1, 2))
    return entity_resolution.run(long_model(4), data=data, quick=True, runner=lambda _: runner)


def test_how_far_the_entity_lies_behind_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part at ℓ 1 and 2, the entity at 4 and 5 of 8; each with words of its own."""
    entries = [entry for entry in made_up() if entry["type"] == "person"]
    for k, entry in enumerate(entries):
        entry |= {"part": "Ombra", "part_keywords": [f"shade{'abcdefghijklmnop'[k]}"]}
    entities = {f"All of them were talking about {entry['name']}": entry for entry in entries}

    def say(cell: Cell) -> str:
        vector = cell.write.vectors[0] if cell.write else None
        entry = entities.get(text_of(vector.ids)) if isinstance(vector, State) else None
        if not isinstance(vector, State) or entry is None or vector.layer not in (1, 2, 4, 5):
            return ": nothing"
        return f": {entry['part_keywords' if vector.layer < 3 else 'keywords'][0]}"

    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, n_choosing=8))
    runner = Saying(say, lambda cell, ids: -float(len(ids)))
    data = write(tmp_path / "entities.json", entries)
    report = entity_resolution.run(long_model(), data=data, quick=True, runner=lambda _: runner)
    for stage in ("same", "fixed"):
        shift = report.finding(f"part-then-entity/{stage}", "shuffled")
        assert (shift.estimate, shift.low, shift.high) == pytest.approx((3 / 8, 3 / 8, 3 / 8))


def test_differences_of_adjusted_rates_may_go_beyond_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the entity's own state says the part and its donors' states say the entity, and later the reverse."""
    entities = {f"All of them were talking about {entry['name']}": entry for entry in made_up()}

    def say(cell: Cell) -> str:
        vector = cell.write.vectors[0] if cell.write else None
        if not isinstance(vector, State) or (entry := entities.get(text_of(vector.ids))) is None:
            return ": nothing"
        early, has_part = vector.layer < 2, "part" in entry
        return f": {' '.join(SPOKEN)}" if early != has_part else ": shadow" if has_part else ": nothing"

    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, n_choosing=8))
    runner = Saying(say, lambda cell, ids: -float(len(ids)))
    report = entity_resolution.run(long_model(), data=one_kind(tmp_path), quick=True, runner=lambda _: runner)
    early = report.finding("part-minus-entity/fixed/early", "shuffled")
    assert early.estimate > 1
    assert early.low <= early.estimate <= early.high
    assert "unlikelier" not in {finding.name.split("/")[-1].split("-")[0] for finding in report.findings}
    assert report.finding("resolved/likelier-names").n_subjects == len(report.provenance["design"]["reported"])


def test_bare_names_at_an_attention_sink_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of one token is at position 0 when it stands alone, and no BOS is before it."""
    entries = [entry for entry in made_up() if entry["type"] == "person"]
    for k, entry in enumerate(entries):
        if k % 2:
            entry["name"] = "QXZWVUJY"[k // 2]
    report = small(tmp_path, entries, monkeypatch)
    names = report.provenance["design"]["reported"]
    sinks, others = (report.finding(f"bare-minus-carrier/{which}") for which in ("sinks", "others"))
    assert sinks.n_subjects == sum(len(name) == 1 for name in names) > 0
    assert sinks.n_subjects + others.n_subjects == report.finding("bare-minus-carrier").n_subjects == len(names)
    assert f"{sinks.n_subjects} read at an attention sink" in report.pages["page"]


def test_words_that_can_be_copied_are_counted_among_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "ombra" stands in each name; "actor" in each inspection prompt, so that no entity is asked for its kind."""
    entries = [{**entry, "type_keywords": ["actor", "Ombra"]} for entry in made_up() if entry["type"] == "person"]
    report = small(tmp_path, entries, monkeypatch)
    n = len(report.provenance["design"]["reported"])
    with_part = {entry["name"] for entry in entries if "part" in entry} & set(report.provenance["design"]["reported"])
    assert any(
        note.startswith(f"{2 * n} of {2 * n + len(with_part)} words of kinds and parts") for note in report.notes
    )
    curves = report.tables["curves"]
    assert not len(curves[curves.score == "type"])
    assert len(curves[curves.score == "part"])


def test_keywords_that_others_have_too_are_not_distinctive(tmp_path: Path) -> None:
    """All of them are said to be "hello", and each by a word of its own at other layers."""
    entries = made_up()
    for entry in entries:
        entry["keywords"] = ["hello", entry["keywords"][0]]
    setting = setup.Setup.of(long_model(), {"quick": True})
    made = design.Design.of(setting, load_entities(write(tmp_path / "e.json", entries)).items)
    assert made.shared == {"hello"}
    assert all(made.distinctive(entity) == (entity.keywords[1],) for entity in made.reported)


def test_short_forms_that_are_the_same_are_no_donors_of_each_other(tmp_path: Path) -> None:
    entries = [{**entry, "bare": "Ombra"} if "bare" in entry else entry for entry in made_up()]
    setting = setup.Setup.of(long_model(), {})
    made = design.Design.of(setting, load_entities(write(tmp_path / "e.json", entries)).items)
    assert sum(entity.bare == "Ombra" for entity in made.reported) > 6
    assert not made.paired(), "one state for all of them"


def test_a_name_that_stands_in_the_carrier_too_is_read_at_the_end() -> None:
    for name in ("talking", "All", "them", "(.*", "Nowhere"):
        made = source(replace(nowhere(), name=name))
        assert made.at is not None
        tokens = tokenize(long_model(), made.text, bos="auto")
        assert resolve_positions(long_model(), tokens, made.at) == (len(tokens) - 1,)


def nowhere() -> Entity:
    return Entity("Nowhere", "place", 1, "A place.", ("place",))
