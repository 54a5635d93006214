"""Rule 18: answers match as whole words, whatever their case and form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.analysis.matching import fold, leaked, matches
from patchscopes.errors import OptionError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris.", "Paris"),
        ("it is PARIS", "paris"),
        ("the New\nYork  City", "new york city"),
        ("São Paulo", "São Paulo"),
        ("Sa\u0303o Paulo", "S\u00e3o Paulo"),
        ("St. John’s", "St. John's"),
        ("C++ is", "C++"),
        ("(Paris)", "Paris"),
        ("\uff30\uff21\uff32\uff29\uff33", "paris"),
        ("北京是首都", "北京"),
        ("Straße", "STRASSE"),
        ("_Paris_", "Paris"),
        ("it's 1984.", "1984"),
        ("Paris-based", "Paris"),
        ("東京タワー", "東京"),
        ("我去Paris旅行", "Paris"),
        ("3月", "3"),
        ("프랑스의 파리는", "파리"),
        ("นครปารีส", "ปารีส"),
        ("पेरिस, दिल्ली।", "दिल्ली"),
        ("the U.S. Army", "U.S."),
        ("O\u2019Brien", "O'Brien"),
        ("Paris's", "Paris"),
        ("Jean\u2010Paul", "Jean-Paul"),
        ("Pa\u00adris", "Paris"),
        ("comparis Paris", "Paris"),
        ("a\u00a0\u2003\r\n b", "a b"),
    ],
)
def test_matches(text: str, answer: str) -> None:
    assert matches(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Parisian", "Paris"),
        ("comparison", "Paris"),
        ("", "Paris"),
        ("19845", "1984"),
        ("Spain2", "Spain"),
        ("York", "New York"),
        ("Romeo", "Rome"),
        ("Oman\u0131", "Oman"),
        ("दिल्लीवाला", "दिल्ली"),
        ("की", "क"),
        ("Pari\u0301s", "Paris"),
        ("Paris\u0301", "Paris"),
        ("NewYork", "New York"),
        ("해파리", "파리"),
    ],
)
def test_does_not_match(text: str, answer: str) -> None:
    assert not matches(text, [answer])


def test_any_alias_will_do() -> None:
    assert matches("in the USA", ["United States", "USA"])
    assert not matches("in the USA", [])


@pytest.mark.parametrize("answer", ["", "  ", "\n", "\u200b"])
def test_an_empty_answer_is_refused(answer: str) -> None:
    with pytest.raises(OptionError, match="empty"):
        matches("text", [answer])
    with pytest.raises(OptionError, match="empty"):
        matches("text", ["text", answer])


def test_leaks_are_in_the_prompt_or_in_the_source() -> None:
    assert leaked(["Paris"], prompt="The capital like Paris is ", source="France")
    assert leaked(["Paris"], prompt="The capital of ", source="From Paris to France")
    assert not leaked(["Paris"], prompt="The capital of ", source="Parisians in France")


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8))
def test_an_answer_matches_itself_between_spaces(answer: str) -> None:
    assert matches(f"so {answer}, then", [answer])


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), st.sampled_from("azé9ß"))
def test_an_answer_does_not_match_inside_a_word(answer: str, letter: str) -> None:
    """Where either neighbour is of a script without spaces, there is no word to be inside of."""
    if fold(answer)[:1].isascii() and fold(answer)[-1:].isascii():
        assert not matches(f"{letter}{answer}{letter}", [answer]) or fold(answer) in fold(letter) * 2


def test_one_answer_is_one_answer_and_not_its_letters() -> None:
    assert not matches("a p", "pa")
    assert matches("pa", "pa")
