"""Relations in JSON: both forms, what is kept, what is left out, and that each sample read is accounted for."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import relation, sample, write
from patchscopes.data import DataSet, Relation, load_relations
from patchscopes.data.wording import CARRIER, CONTEXTS
from patchscopes.errors import DataError

PHOBOS, TITAN = sample("Phobos", "Mars"), sample("Titan", "Saturn")


def load(tmp_path: Path, *samples: dict[str, object], **more: object) -> DataSet[Relation]:
    return load_relations(write(tmp_path / "moons.json", relation(*samples, **more)))


def subjects(data: DataSet[Relation]) -> list[str]:
    return [fact.subject for one in data.items for fact in one.facts]


def why(data: DataSet[Relation]) -> dict[str, str]:
    return {exclusion.item.removeprefix("moon planet: "): exclusion.reason for exclusion in data.excluded}


def test_own_form(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        sample("Phobos", "Mars", aliases=["the red planet"], where="an atlas"),
        TITAN,
        subject_kind="moon",
        object_kind="planet",
        question="Which planet does {} go around?",
        carrier="We looked at {}",
        contexts=["She wrote about {}", "He dreamt of {}"],
    )
    (moons,) = data.items
    assert (moons.name, moons.subject_kind, moons.object_kind) == ("moon planet", "moon", "planet")
    assert moons.question == "Which planet does {} go around?"
    assert (moons.carrier, moons.contexts) == ("We looked at {}", ("She wrote about {}", "He dreamt of {}"))
    assert moons.facts[0].answers == ("Mars", "the red planet")
    assert moons.facts[0].where == "an atlas"
    assert moons.contexts_of(moons.facts[0]) == moons.contexts
    assert (moons.n_classes, data.n_read, data.excluded, data.notes) == (2, 2, (), ())
    assert (data.name, data.source) == ("moons.json", str(tmp_path / "moons.json"))


def test_lre_form(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        PHOBOS,
        TITAN,
        prompt_templates_zs=["The planet of {}", "{} goes around", "Mars, Saturn: which is that of {}? It is"],
        properties={"relation_type": "factual", "domain_name": "moon", "range_name": "planet", "symmetric": False},
    )
    (moons,) = data.items
    assert moons.prompt_templates == ("The planet of {}", "{} goes around")
    assert (moons.subject_kind, moons.object_kind) == ("moon", "planet")
    assert (moons.carrier, moons.contexts) == (CARRIER, CONTEXTS)
    assert [exclusion.kind for exclusion in data.excluded] == ["template"]
    assert data.counts() == {"template names an object of its relation": 1}


def test_zero_shot_templates_are_all_taken_where_there_are_no_others(tmp_path: Path) -> None:
    value = relation(PHOBOS, TITAN, prompt_templates_zs=["Is that of {} Mars?"])
    del value["prompt_templates"]
    data = load_relations(write(tmp_path / "moons.json", value))
    assert data.items[0].prompt_templates == ("Is that of {} Mars?",)
    assert [fact.leaks for fact in data.items[0].facts] == [True, False]


def test_general_sentences_end_with_the_subject_behind_other_words() -> None:
    assert len(CONTEXTS) >= 5
    assert all(text.endswith(" {}") and text.count("{}") == 1 for text in (CARRIER, *CONTEXTS))


@pytest.mark.parametrize(
    ("answers", "second"),
    [
        (["Mars"], ["MARS"]),
        (["Mars"], ["Venus", "mars "]),
        (["Mars", "the red planet"], ["The Red Planet"]),
        (["Mars"], ["the planet Mars"]),
        (["Washington, D.C."], ["washington"]),
        (["São Paulo"], ["Sa\u0303o Paulo"]),
    ],
)
def test_passes_agree(tmp_path: Path, answers: list[str], second: list[str]) -> None:
    data = load(tmp_path, sample("Phobos", answers[0], aliases=answers[1:], second=second))
    assert subjects(data) == ["Phobos"]


@pytest.mark.parametrize("second", [[], [""], ["\u200b"], ["Marsian"], ["Venus", "Saturn"], None])
def test_passes_disagree(tmp_path: Path, second: list[str] | None) -> None:
    data = load(tmp_path, sample("Phobos", "Mars", second=second), sample("Titan", "Saturn", second=["Saturn"]))
    assert subjects(data) == ["Titan"]
    assert why(data) == {"Phobos": "the two passes disagree"}


def test_without_an_answer_of_a_second_pass_that_others_of_the_file_have(tmp_path: Path) -> None:
    data = load(tmp_path, PHOBOS, sample("Titan", "Saturn", second=["Saturn"]))
    assert why(data) == {"Phobos": "the two passes disagree"}


def test_repeated_subjects(tmp_path: Path) -> None:
    data = load(
        tmp_path, PHOBOS, sample("phobos", "MARS"), TITAN, sample("Io", "Jupiter"), sample("Io ", "Saturn"), PHOBOS
    )
    assert subjects(data) == ["Phobos", "Titan"]
    assert data.counts() == {
        "subject given twice with the same answer": 2,
        "subject given twice with different answers": 2,
    }


@pytest.mark.parametrize(
    "bad", [sample("", "Mars"), sample("Deimos", " "), sample("Deimos", "\u200b"), sample("D", "")]
)
def test_empty_subject_or_object(tmp_path: Path, bad: dict[str, object]) -> None:
    data = load(tmp_path, PHOBOS, bad, sample("Io", None))  # type: ignore[arg-type]
    assert subjects(data) == ["Phobos"]
    assert data.counts() == {"subject or object is empty": 2}
    assert data.n_read == 3


def test_the_first_reason_counts(tmp_path: Path) -> None:
    checked = [sample("Io", "Mars", second=[]), sample("Io", "Jupiter", second=["Jupiter"])]
    data = load(tmp_path, *checked, sample("Titan", "Saturn", second=["Saturn"]))
    assert data.counts() == {"subject given twice with different answers": 2}


def test_an_empty_alias_is_left_out_alone(tmp_path: Path) -> None:
    data = load(tmp_path, sample("Phobos", "Mars", aliases=["", "Ares"]))
    assert data.items[0].facts[0].aliases == ("Ares",)
    assert [(exclusion.reason, exclusion.kind) for exclusion in data.excluded] == [("alias is empty", "alias")]


@pytest.mark.parametrize(
    ("subject", "answer", "aliases", "leaks"),
    [
        ("Mexico", "Mexico City", [], True),
        ("Mars's first moon", "Mars", [], True),
        ("Martian moon", "Mars", [], False),
        ("Marsia", "Mars", [], True),
        ("Russia", "Moscow", ["US"], False),
        ("Moon of Ares", "Mars", ["Ares"], True),
        ("Phobos", "The Planet", [], True),
        ("Phobos", "of moons", [], False),
    ],
)
def test_leaks(tmp_path: Path, subject: str, answer: str, aliases: list[str], leaks: bool) -> None:
    data = load(tmp_path, sample(subject, answer, aliases=aliases), prompt_templates=["The planet of {} moons"])
    assert data.items[0].facts[0].leaks is leaks


def test_one_class_is_kept_and_told(tmp_path: Path) -> None:
    assert load(tmp_path, PHOBOS, sample("Deimos", "mars")).items[0].n_classes == 1


def test_templates_and_contexts_are_sorted_out(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        PHOBOS,
        prompt_templates=["The planet of {}", "The planet", "{} and {}", "The planet of {}"],
        contexts=["About {}", "{}", "{} is far", "About {}", "{} and {}"],
    )
    assert data.items[0].prompt_templates == ("The planet of {}",)
    assert data.items[0].contexts == ("About {}",)
    assert data.counts() == {
        "context that does not end with {}, its only one, behind other words": 3,
        "template without exactly one {}": 2,
        "text given twice": 2,
    }


def test_doubly_escaped_text_is_decoded_and_told(tmp_path: Path) -> None:
    data = load(tmp_path, sample("Bras\\u00edlia", "\\ud83d\\ude00"), sample("half \\ud83d", "C:\\users"))
    assert [(fact.subject, fact.object) for fact in data.items[0].facts] == [
        ("Brasília", "\U0001f600"),
        ("half \\ud83d", "C:\\users"),
    ]
    assert data.notes == ("moons.json: 2 texts were escaped twice and are decoded",)


def test_keys_that_nothing_reads_are_told(tmp_path: Path) -> None:
    data = load(tmp_path, sample("Phobos", "Mars", alias=["Ares"]), author="me")
    assert data.notes == ('moons.json: not read: "author"', 'samples of moons.json: not read: "alias"')


def test_a_relation_without_a_fact_left_is_told_among_others(tmp_path: Path) -> None:
    write(tmp_path / "a.json", relation(PHOBOS))
    write(tmp_path / "b.json", relation(sample("", "x"), name="empty"))
    data = load_relations(tmp_path)
    assert [one.name for one in data.items] == ["moon planet"]
    assert data.notes == ("empty: no fact is left, and so no relation",)
    assert data.n_read == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "x", "samples": []}, 'has no "prompt_templates"; it needs "name", "prompt_templates", "samples"'),
        (relation(), "moons.json has no samples; give at least one"),
        (relation({"subject": "Phobos"}), 'sample 1 of moons.json has no "object"; it needs "subject", "object"'),
        (relation(PHOBOS, sample("Io", 3)), 'sample 2 of moons.json: "object" must be a text, not 3'),  # type: ignore[arg-type]
        (relation(sample("Io", "x", aliases="y")), '"aliases" must be a list of texts, not "y"'),
        (relation("Io"), 'sample 1 of moons.json must be a JSON object with keys, not "Io"'),  # type: ignore[arg-type]
        (relation(PHOBOS, samples={}), "must hold a JSON list, one object for each sample, not {}"),
        ([PHOBOS], "moons.json must be a JSON object with keys"),
        (relation(PHOBOS, name=" "), '"name" is empty'),
        (relation(PHOBOS, prompt_templates=["The planet"]), "no template with exactly one {} for the subject"),
        (relation(PHOBOS, contexts=["{} is far"]), "no context that ends with {}"),
        (relation(PHOBOS, carrier="{} is far"), "the carrier must end with {}.* it is '{} is far'"),
        (relation(PHOBOS, properties=[]), '"properties" of moons.json must be a JSON object'),
        (relation(sample("", "x")), r"no fact that can be used \(subject or object is empty: 1\)"),
        (relation(sample("\ud800", "x")), "moons.json holds half a character"),
    ],
)
def test_refused(tmp_path: Path, value: object, message: str) -> None:
    path = tmp_path / "moons.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        load_relations(path)


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", relation(PHOBOS))
    write(tmp_path / "b" / "c.json", relation(TITAN, name="Moon Planet"))
    with pytest.raises(DataError, match=r"a\.json and b/c\.json both hold the relation 'Moon Planet'"):
        load_relations(tmp_path)


WORDS = st.sampled_from(["", " ", "Io", "io", "Titan", "Mars", "mars", "Saturn", "é", "\\u00e9", "\u200b"])
SAMPLES = st.fixed_dictionaries(
    {"subject": WORDS, "object": WORDS},
    optional={"aliases": st.lists(WORDS, max_size=2), "second": st.lists(WORDS, max_size=2)},
)


@settings(deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=8), st.lists(SAMPLES, max_size=3))
def test_every_sample_read_is_a_fact_or_an_exclusion(
    one: list[dict[str, object]], two: list[dict[str, object]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "one.json", relation(sample("Rhea", "Saturn", second=["Saturn"]), *one))
        write(Path(folder) / "two.json", relation(*two, TITAN, name="two"))
        data = load_relations(folder)
    left_out = sum(exclusion.kind == "sample" for exclusion in data.excluded)
    assert len(subjects(data)) + left_out == data.n_read == len(one) + len(two) + 2
