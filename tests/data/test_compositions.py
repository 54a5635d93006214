"""Two-hop compositions: which queries there are, which are left out and why, and what our own data give."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.data import Composition, DataSet, Fact, Query, Relation, compositions, load_relations
from patchscopes.data.compositions import (
    BACK,
    FEW,
    KINDS,
    MIN_QUERIES,
    NAMED,
    NO_FIRST,
    NO_SECOND,
    NO_SUBJECT,
    ONE_ANSWER,
    ONE_HOP,
    SUBJECTS,
)
from patchscopes.data.phrases import own_phrases, phrases_of
from patchscopes.errors import DataError

# Rocks lie in lands, lands have capitals; no name stands in another.
LANDS = {"Ashrock": "Borland", "Birrock": "Casland", "Corrock": "Dovland", "Dunrock": "Falland", "Elmrock": "Gorland"}
CAPITALS = {"Borland": "Xiburg", "Casland": "Yoburg", "Dovland": "Zuburg", "Falland": "Waburg", "Gorland": "Veburg"}


def facts(pairs: dict[str, str]) -> list[Fact]:
    return [Fact(subject, answer) for subject, answer in pairs.items()]


def relation(name: str, some: Sequence[Fact], *templates: str, kinds: tuple[str, str] = ("", "")) -> Relation:
    return Relation(name, templates, "On {}", ("On {}",), tuple(some), "", *kinds)


def lands(*more: Fact, kinds: tuple[str, str] = ("", ""), template: str = "The land around {}") -> Relation:
    return relation("rock land", [*facts(LANDS), *more], template, kinds=kinds)


def capitals(*more: Fact, kinds: tuple[str, str] = ("", ""), template: str = "The seat of {}") -> Relation:
    return relation("land capital", [*facts(CAPITALS), *more], template, kinds=kinds)


def made(rock: Fact, *more: Fact) -> Query | str:
    """What becomes of one more rock, beside the five that are composed: its query, or why there is none."""
    data = compositions([lands(rock), capitals(*more)])
    (composition,) = data.items
    found = [query for query in composition.queries if query.subject == rock.subject]
    reasons = {exclusion.item: exclusion.reason for exclusion in data.excluded if exclusion.kind == "query"}
    assert len(composition.queries) + len(reasons) == len(LANDS) + 1
    return found[0] if found else reasons[f"rock land → land capital: {rock.subject}"]


def apart(*relations: Relation) -> dict[str, str]:
    """Why pairs are left out, by their names, beside one pair that is not."""
    kept = (relation("one", facts(LANDS), "The one of {}"), relation("two", facts(CAPITALS), "The two of {}"))
    data = compositions([*kept, *relations])
    assert "one → two" in {composition.name for composition in data.items}
    return {exclusion.item: exclusion.reason for exclusion in data.excluded if exclusion.kind == "composition"}


def test_a_query() -> None:
    data = compositions([lands(), capitals(Fact("Hilland", "Uburg"))])
    (composition,) = data.items
    assert (composition.name, composition.first, composition.second) == (
        "rock land → land capital", "rock land", "land capital",
    )  # fmt: skip
    assert (composition.n_classes, data.excluded) == (5, ())
    assert composition.queries[0] == Query(
        subject="Ashrock",
        bridge="Borland",
        bridges=("Borland",),
        answer="Xiburg",
        answers=("Xiburg",),
        first="the land around Ashrock",
        second="The seat of",
    )
    assert composition.queries[0].text == "The seat of the land around Ashrock"
    assert not composition.queries[0].leaks


def test_an_alias_is_a_bridge_and_all_that_is_right_is_kept() -> None:
    query = made(Fact("Firrock", "Bor", ("Old Bor", "borland")), Fact("Hilland", "Uburg", ("Uborg",)))
    assert isinstance(query, Query)
    assert (query.bridge, query.bridges, query.answer) == ("Borland", ("Borland", "Bor", "Old Bor"), "Xiburg")
    query = made(Fact("Firrock", "Hilland"), Fact("Hilland", "Uburg", ("Uborg",)))
    assert isinstance(query, Query)
    assert query.answers == ("Uburg", "Uborg")


@pytest.mark.parametrize(
    ("bridge", "subject"), [("Hil Isles", "the Hil Isles"), ("the Hil Isles", "Hil Isles"), ("HIL  isles", "Hil Isles")]
)
def test_a_bridge_is_the_same_with_and_without_an_article(bridge: str, subject: str) -> None:
    query = made(Fact("Firrock", bridge), Fact(subject, "Uburg"))
    assert isinstance(query, Query)
    assert query.bridge == subject


@pytest.mark.parametrize(
    ("rock", "land", "reason"),
    [
        (Fact("Firrock", "Nowhere", ("Bor",)), Fact("Hilland", "Uburg"), NO_SUBJECT),
        (Fact("Firrock", "Borland", ("Casland",)), Fact("Hilland", "Uburg"), SUBJECTS),
        (Fact("Firrock", "Hilland"), Fact("the Hilland", "Uburg"), ""),
        (Fact("Firrock", "Hilland"), Fact("Hilland", "Hilland"), ONE_HOP),
        (Fact("Firrock", "Hilland"), Fact("Hilland", "Hilland City"), ONE_HOP),
        (Fact("Firrock", "Great Hilland"), Fact("Great Hilland", "Hilland"), ONE_HOP),
        (Fact("Firrock", "Hilland", ("Hillish",)), Fact("Hilland", "Old Hillish", ("Hillish",)), ONE_HOP),
        (Fact("Firrock", "the Hil"), Fact("the Hil", "Hil Port"), ONE_HOP),
        (Fact("Firrock", "Hilland"), Fact("Hilland", "Hillander"), ""),
        (Fact("Hilland Rock", "Hilland"), Fact("Hilland", "Uburg"), NAMED),
        (Fact("Hil Rock", "the Hil"), Fact("the Hil", "Uburg"), NAMED),
        (Fact("Hillander", "Hilland"), Fact("Hilland", "Uburg"), NAMED),
        (Fact("Rock of Hil", "Hilland", ("Hil",)), Fact("Hilland", "Uburg"), NAMED),
        (Fact("Firrock", "Hilland", ("around",)), Fact("Hilland", "Uburg"), NAMED),
        (Fact("Firrock", "Hilland"), Fact("Hilland", "Uburg", ("FIRROCK",)), BACK),
        (Fact("the Firrock", "Hilland"), Fact("Hilland", "Firrock"), BACK),
    ],
)
def test_what_one_hop_answers_or_the_text_names_is_left_out(rock: Fact, land: Fact, reason: str) -> None:
    query = made(rock, land)
    assert query == reason if reason else isinstance(query, Query)


def test_two_subjects_with_the_key_of_one_bridge_are_several() -> None:
    assert made(Fact("Firrock", "Hilland"), Fact("Hilland", "Uburg"), Fact("the Hilland", "Uborg")) == SUBJECTS


@pytest.mark.parametrize(
    ("subject", "answers", "leaks"),
    [
        ("Firrock", ("Uburg",), False),
        ("Uburg Rock", ("Uburg",), True),
        ("Uburger Rock", ("Uburg",), True),
        ("Uborg Rock", ("Uburg", "Uborg"), True),
        ("Uborger Rock", ("Uburg", "Uborg"), False),
        ("Firrock", ("Seat",), True),
        ("Firrock", ("Uburg", "the land"), True),
    ],
)
def test_leaks(subject: str, answers: tuple[str, ...], leaks: bool) -> None:
    query = made(Fact(subject, "Hilland"), Fact("Hilland", answers[0], answers[1:]))
    assert isinstance(query, Query)
    assert query.leaks is leaks


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        ("The land around {}", "the land around {}", "The land around"),
        ("The land of {} is", "the land of {}", "The land of"),
        ("The land of {} is the", "the land of {}", "The land of"),
        ("The land of {} is called", "", ""),
        ("The land of {}'s father", "", ""),
        ("The {}", "", ""),
        ("The pre-{}", "", ""),
        ("Theland of {}", "", ""),
        ("{} lies in", "", ""),
        ("In the land of {}", "", ""),
    ],
)
def test_phrases_of_templates(template: str, first: str, second: str) -> None:
    found = phrases_of(relation("rock land", facts(LANDS), "{} is in", template, "The second {}"), {})
    expected = (first, second) if first else ("the second {}", "The second")
    assert (found.first, found.second) == expected


def test_without_words_for_a_hop_the_pair_is_left_out() -> None:
    mute = "{} lies in"
    assert apart(lands(template=mute))["rock land → two"] == NO_FIRST
    assert apart(capitals(template=mute))["one → land capital"] == NO_SECOND


def test_kinds_that_differ_are_no_bridge() -> None:
    rocks, seats = lands(kinds=("rock", "land")), capitals(kinds=("river", "city"))
    assert apart(rocks, seats) == {"rock land → land capital": KINDS}
    for kind in ("LAND ", "land", ""):
        assert apart(rocks, capitals(kinds=(kind, "city"))) == {}
    assert apart(lands(), seats) == {}


def test_too_few_queries_and_too_few_answers() -> None:
    assert (MIN_QUERIES, len(LANDS)) == (5, 5)
    four = relation("four", facts(LANDS)[:4], "The land of {}")
    assert apart(four) == {"four → two": FEW}
    same = relation("same", facts(dict.fromkeys(CAPITALS, "Xiburg")), "The seat of {}")
    assert apart(same) == {"one → same": ONE_ANSWER}
    nowhere = relation("lost", [*facts(LANDS)[:4], Fact("Firrock", "Nowhere")], "The land of {}")
    assert apart(nowhere) == {f"lost → two ({NO_SUBJECT}: 1)": FEW}


def test_order_is_that_of_the_relations_and_of_their_facts() -> None:
    rivers = relation("river land", facts({f"{rock} river": land for rock, land in LANDS.items()}), "The shore of {}")
    mayors = relation("land mayor", facts({land: f"{city} May" for land, city in CAPITALS.items()}), "The head of {}")
    data = compositions([mayors, rivers, capitals(), lands()])
    assert [composition.name for composition in data.items] == [
        "river land → land mayor", "river land → land capital", "rock land → land mayor", "rock land → land capital",
    ]  # fmt: skip
    assert [query.subject for query in data.items[-1].queries] == list(LANDS)
    assert data == compositions([mayors, rivers, capitals(), lands()])


def test_a_relation_may_lead_on_to_itself() -> None:
    chain = ["Ash", "Bir", "Cor", "Dun", "Elm", "Fir", "Gum"]
    heirs = relation("heir", [Fact(*pair) for pair in pairwise(chain)], "The heir of {}")
    (composition,) = compositions([heirs]).items
    assert [query.text for query in composition.queries][:1] == ["The heir of the heir of Ash"]
    assert [query.answer for query in composition.queries] == chain[2:]


def test_hash_and_source_are_those_of_the_relations() -> None:
    relations = (lands(), capitals())
    data = compositions(DataSet("mine", relations, (), sha256="abc", source="a/b", n_read=17, notes=("a note",)))
    assert (data.name, data.sha256, data.source, data.n_read, data.notes) == (
        "compositions of mine", "abc", "a/b", 17, ("a note",),
    )  # fmt: skip
    bare = compositions(relations)
    assert (bare.items, bare.sha256, bare.source, bare.n_read) == (data.items, "", "given", 10)


def test_relations_of_our_names_have_our_words() -> None:
    products = ["iPhone", "Gmail", "Tide", "Wii", "Bravia"]
    makers = relation("Product company", facts(dict(zip(products, LANDS.values(), strict=True))), "{} is made by")
    heads = relation("company CEO", facts(CAPITALS), "The chief of {}")
    (composition,) = compositions([makers, heads]).items
    assert [query.text for query in composition.queries][:2] == [
        "The CEO of the company behind the iPhone",
        "The CEO of the company behind Gmail",
    ]


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ([], "given relations: no two of the 0 relations can be composed"),
        ([lands()], "no two of the 1 relations .*no object of one is a subject of another.* at least 5 objects"),
        ([lands(template="{} lies in"), capitals()], f"{NO_FIRST}: 1"),
    ],
)
def test_refused_where_nothing_is_left(relations: list[Relation], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compositions(relations)


NAMES = st.sampled_from(["Ash", "Bir", "the Ash", "Ashburg", "Cor", "Dun", "Elm"])
FACTS = st.lists(st.tuples(NAMES, NAMES, st.lists(NAMES, max_size=2)), max_size=8)


@settings(deadline=None)
@given(FACTS, FACTS)
def test_every_fact_of_the_first_is_a_query_or_an_exclusion(
    one: list[tuple[str, str, list[str]]], two: list[tuple[str, str, list[str]]]
) -> None:
    of_one, of_two = ([Fact(subject, name, tuple(more)) for subject, name, more in some] for some in (one, two))
    relations = [lands(*of_one), capitals(*of_two)]
    assert added_up(compositions(relations), relations)


def added_up(data: DataSet[Composition], relations: Sequence[Relation]) -> bool:
    n_facts = {relation.name: len(relation.facts) for relation in relations}
    left_out = Counter(item.item.split(":")[0] for item in data.excluded if item.kind == "query")
    names = {composition.name for composition in data.items}
    return set(left_out) <= names and all(len(c.queries) + left_out[c.name] == n_facts[c.first] for c in data.items)


def words_in(text: str, answers: Sequence[str]) -> bool:
    """Whether one of `answers` stands in `text` as whole words; not by the package's own matching."""
    return any(re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", text.casefold()) for answer in answers)


@pytest.fixture(scope="module")
def own() -> DataSet[Composition]:
    return compositions(load_relations())


def queries(data: DataSet[Composition]) -> list[Query]:
    return [query for composition in data.items for query in composition.queries]


def test_our_own_data_give_many(own: DataSet[Composition]) -> None:
    relations = load_relations()
    assert len(own.items) > 20
    assert len(queries(own)) > 1000
    assert {c.name: len(c.queries) for c in own.items if len(c.queries) < 20 or c.n_classes < 2} == {}
    assert (own.sha256, own.source, own.n_read) == (relations.sha256, "own", relations.n_read)
    assert added_up(own, relations.items)


def test_our_own_texts_are_well_formed(own: DataSet[Composition]) -> None:
    bad = [
        query.text
        for query in queries(own)
        if re.search(r"\{\}|  |\bthe the\b", query.text, re.IGNORECASE)
        or not query.text.startswith(f"{query.second} the ")
        or not query.text.endswith(f" {query.subject}")
    ]
    assert bad == []
    assert len({query.text for query in queries(own)}) == len(queries(own))


def test_our_own_texts_name_no_bridge_and_answers_only_where_they_leak(own: DataSet[Composition]) -> None:
    assert [query.text for query in queries(own) if words_in(query.text, query.bridges)] == []
    leaking = [query for query in queries(own) if query.leaks]
    assert [query for query in queries(own) if words_in(query.text, query.answers) and query not in leaking] == []
    assert "The capital of the country that is home to Tokyo Tower" in {query.text for query in leaking}
    assert len(leaking) < len(queries(own)) / 100
    assert [q.text for q in queries(own) if any(words_in(bridge, q.answers) for bridge in q.bridges)] == []


def test_our_own_queries_are_made_of_facts(own: DataSet[Composition]) -> None:
    kept = {one.name: {fact.subject: fact for fact in one.facts} for one in load_relations().items}
    for composition in own.items:
        firsts, seconds = kept[composition.first], kept[composition.second]
        for query in composition.queries:
            assert set(firsts[query.subject].answers) <= {*query.bridges}
            assert (query.answer, query.answers) == (seconds[query.bridge].object, seconds[query.bridge].answers)


def test_our_own_words_are_for_our_own_relations_and_no_other_words_are_used(own: DataSet[Composition]) -> None:
    kept = {one.name.casefold(): one for one in load_relations().items}
    ours = own_phrases()
    assert set(ours) <= set(kept)
    for name, phrases in ours.items():
        assert re.fullmatch(r"(the \S.*\S \{\})?", phrases.first), name
        assert re.fullmatch(r"(The \S.*\S)?", phrases.second), name
        assert phrases.with_article <= {fact.subject for fact in kept[name].facts}, name
    used = [(ours[c.first.casefold()].first, ours[c.second.casefold()].second) for c in own.items]
    assert all(first and second for first, second in used)


def test_the_documentation_counts_our_compositions(own: DataSet[Composition]) -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split())
    n_leaking = sum(query.leaks for query in queries(own))
    assert f"{len(own.items)} compositions with {len(queries(own)):,} queries, {n_leaking} of which leak" in page
