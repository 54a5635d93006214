"""`at=` → positions: the whole grammar, and what it refuses (rule 6)."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from odd_tokenizers import MAKERS, model_with
from patchscopes import errors
from patchscopes.models import Model
from patchscopes.prompts import resolve_mask, resolve_positions, tokenize

# 0 "the" 1 " cat" 2 " of" 3 " the" 4 " cat" 5 " 1135" 6 " is"
TWICE = "the cat of the cat 1135 is"


def at(model: Model, text: str, where: object) -> tuple[int, ...]:
    return resolve_positions(model, tokenize(model, text), where)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "positions"),
    [
        ("last", (6,)),
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        (0, (0,)),
        (-7, (0,)),
        ("+3", (3,)),
        (" -1 ", (6,)),
        (np.int64(2), (2,)),
        (np.int32(-1), (6,)),
        ("cat#1", (1,)),
        ("cat#2", (4,)),
        ("the cat#2", (4,)),
        ("span:the cat#2", (3, 4)),
        ("of the", (3,)),
        ("text:1135", (5,)),
        ("span:1135", (5,)),
        ("re:[0-9]+", (5,)),
        ("re:^the cat", (1,)),
        ("re:[0-9]*", (5,)),
        ("re:cat(?= 1)", (4,)),
        ("span:re:cat of", (1, 2)),
        ("span:text:cat of", (1, 2)),
        ("he cat of", (2,)),
        ("span:at of th", None),
        ("span:", None),
        ("span:last", None),
        ("cat#3", None),
        ("cat#0", None),
        ("cat #1", None),
        ("CAT", None),
        ("the", None),
        ("cat ", None),
        ("", None),
        ("re:", None),
        ("re:(?=cat)", None),
        ("re:dog", None),
        ("re:cat", None),
        ("text:cat", None),
        ("text:cat#2", None),
        (7, None),
        (-8, None),
        ("1135", None),
        ("ca", None),
        ("9" * 5000, None),
        (True, None),
        ("\ud800", None),
    ],
)
def test_the_grammar(llama: Model, where: object, positions: tuple[int, ...] | None) -> None:
    if positions is not None:
        assert at(llama, TWICE, where) == positions
        return
    with pytest.raises(errors.PositionError):
        at(llama, TWICE, where)


@pytest.mark.parametrize("where", ["dog", "cat", "cat#3", 99, "ca", "re:cat", "text:dog", "span:dog"])
def test_errors_show_the_text_and_the_token_table(llama: Model, where: str | int) -> None:
    with pytest.raises(errors.PositionError) as caught:
        at(llama, TWICE, where)
    message = str(caught.value)
    assert TWICE in message
    assert len(message.splitlines()) == 1 + 1 + 7
    assert "' 1135'" in message


@pytest.mark.parametrize("where", ["cat", "span:cat"])
def test_the_advice_for_a_phrase_that_occurs_twice_works(llama: Model, where: str) -> None:
    with pytest.raises(errors.PositionError, match="occurs twice") as caught:
        at(llama, TWICE, where)
    advised = str(caught.value).split("as in ")[1].split(",")[0]
    assert at(llama, TWICE, advised) == (4,)


@pytest.mark.parametrize("where", ["re:cat", "text:cat"])
def test_no_number_is_advised_where_none_is_read(llama: Model, where: str) -> None:
    with pytest.raises(errors.PositionError) as caught:
        at(llama, TWICE, where)
    assert "#2" not in str(caught.value).splitlines()[0]


def test_a_number_that_is_text_is_told_how(llama: Model) -> None:
    with pytest.raises(errors.PositionError, match="text:1135"):
        at(llama, TWICE, "1135")


def test_an_invalid_regular_expression_says_why(llama: Model) -> None:
    with pytest.raises(errors.PositionError, match=r"'\(' is no regular expression: missing \)"):
        at(llama, TWICE, "re:(")


def test_overlapping_occurrences_are_all_counted(llama: Model) -> None:
    with pytest.raises(errors.PositionError, match="occurs twice"):
        at(llama, "xxx", "xx")
    assert at(llama, "xxx", "xx#2") == (2,)
    assert at(llama, "xxx", "xx#1") == (1,)
    with pytest.raises(errors.PositionError, match="occurs 3 times"):
        at(llama, "xxx", "x")


def test_a_phrase_that_ends_inside_a_token_is_refused_and_the_token_marked(llama: Model) -> None:
    with pytest.raises(errors.PositionError, match="ends inside a token") as caught:
        at(llama, "the cat of Spain", "Spai")
    marked = [line for line in str(caught.value).splitlines() if line.startswith(">")]
    assert marked == [line for line in str(caught.value).splitlines() if "' Spain'" in line]


def test_a_phrase_may_begin_inside_a_token(llama: Model) -> None:
    assert at(llama, "the cat of Spain", "pain") == (3,)


def test_a_phrase_means_its_last_token_and_a_span_all(llama: Model) -> None:
    text = "a cathedral is"
    pieces = at(llama, text, "span:cathedral")
    assert len(pieces) > 2
    assert at(llama, text, "cathedral") == pieces[-1:]


@pytest.mark.parametrize("kind", ["byte-level", "trimmed", "llama-2", "gemma"])
def test_a_character_of_several_tokens_means_the_last_of_them(kind: str) -> None:
    model = tiny_model("llama") if kind == "byte-level" else model_with(kind)
    text = "the 😀 é cat"
    tokenized = tokenize(model, text)
    emoji = [i for i, span in enumerate(tokenized.spans) if span == (4, 5)]
    assert len(emoji) == 4
    assert at(model, text, "span:😀") == tuple(emoji)
    assert at(model, text, "😀") == (emoji[-1],)
    assert at(model, text, "é") == (emoji[-1] + 3,), "a space and two bytes"


@pytest.mark.parametrize("kind", MAKERS)
def test_phrases_are_found_on_every_kind_of_tokenizer(kind: str) -> None:
    model = model_with(kind)
    assert at(model, "the cat of Spain", "cat") == (1,)
    assert at(model, "the cat of Spain", "span:cat of") == (1, 2)
    assert at(model, "1 is the cat", "cat") == (len(tokenize(model, "1 is the cat")) - 1,)


@pytest.mark.parametrize("kind", ["llama-2", "metaspace"])
def test_the_space_put_before_a_text_hides_no_phrase(kind: str) -> None:
    model = model_with(kind)
    tokenized = tokenize(model, "; is cat")
    assert tokenized.spans[:2] == ((0, 1), (0, 1)), "the space and the sign, both over the sign"
    assert at(model, "; is cat", ";") == (1,)


def test_bos_is_counted() -> None:
    plain, with_bos = tiny_model("llama"), tiny_model("llama", add_bos=True)
    for where in ("cat", "last", "re:c.t"):
        (without,) = at(plain, "the cat", where)
        assert at(with_bos, "the cat", where) == (without + 1,)
    assert at(with_bos, "the cat", "all") == (0, 1, 2)
    assert at(with_bos, "the cat", 0) == (0,)


def test_offsets_that_lie_are_refused_for_phrases_and_do_no_harm_to_numbers(llama: Model) -> None:
    right = tokenize(llama, "the cat of Spain")
    lying = replace(right, spans=((0, 3), (3, 10), (3, 7), (10, 16)))
    with pytest.raises(errors.PositionError, match="offsets do not fit its ids at position 1"):
        resolve_positions(llama, lying, "Spain")
    assert resolve_positions(llama, lying, 2) == (2,)


def test_special_tokens_inside_the_text_are_places_like_others(llama: Model) -> None:
    text = "the cat<eos>hello"
    assert at(llama, text, "<eos>") == (2,)
    assert at(llama, text, "cat") == (1,)
    assert at(llama, text, "hello") == (3,)
    assert at(llama, text, "span:cat<eos>hello") == (1, 2, 3)
    with pytest.raises(errors.PositionError, match="ends inside a token"):
        at(llama, text, "cat<eos")


def test_a_phrase_over_lines_with_a_number_sign(llama: Model) -> None:
    text = "the\ncat the\ncat"
    assert at(llama, text, "the\ncat#2") == (len(tokenize(llama, text)) - 1,)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["cat", "é", "😀", "Spain", ";", "x!", "\n", "<eos>", "1135"]), min_size=1, max_size=6))
def test_a_span_and_its_text_are_the_same_place(words: list[str]) -> None:
    """Any run of whole tokens is found by its own text, unless that text occurs twice."""
    model = tiny_model("llama")
    text = " ".join(words)
    tokenized = tokenize(model, text)
    for start in range(len(tokenized)):
        a, b = tokenized.spans[start][0], tokenized.spans[-1][1]
        phrase = text[a:b]
        if text.find(phrase) == text.rfind(phrase):
            found = at(model, text, f"span:text:{phrase}")
            assert found[-1] == len(tokenized) - 1
            assert all(tokenized.spans[i][1] > a for i in found)
            assert found == tuple(range(found[0], len(tokenized)))
            assert at(model, text, f"text:{phrase}") == found[-1:]


def test_digits_of_other_scripts_are_text(llama: Model) -> None:
    text = "go to \uff13 cats, ٣ times"
    for digit in ("\uff13", "٣"):
        (position,) = at(llama, text, digit)
        assert tokenize(llama, text).spans[position][1] == text.index(digit) + 1
    with pytest.raises(errors.PositionError, match="occurs 0 times"):
        at(llama, text, "٣#\uff13")


def test_a_phrase_in_another_normal_form_is_told(llama: Model) -> None:
    composed, parted = "the café is", unicodedata.normalize("NFD", "the café is")
    for text, phrase in ((parted, "café"), (composed, unicodedata.normalize("NFD", "café")), ("ﬁt", "fit")):
        for named in (phrase, f"span:{phrase}", f"text:{phrase}", f"{phrase}#1"):
            with pytest.raises(errors.PositionError, match="another Unicode normal form"):
                at(llama, text, named)
        with pytest.raises(errors.PositionError, match="another Unicode normal form"):
            resolve_mask(llama, tokenize(llama, text), phrase)
    assert at(llama, parted, " is") == (len(tokenize(llama, parted)) - 1,)


def test_a_phrase_stands_though_the_tokenizer_rewrites_the_text_elsewhere(llama: Model) -> None:
    """Signs that a normalizer leaves out make tokens that do not fit their characters: here they are made up."""
    right = tokenize(llama, "the cat\u200b of Spain is")
    odd = [i for i, span in enumerate(right.spans) if "\u200b" in right.text[slice(*span)]]
    ids = [id for i, id in enumerate(right.ids) if i not in odd]
    spans = [span for i, span in enumerate(right.spans) if i not in odd]
    spans[1] = (3, 8)  # " cat" covers the sign too
    tokens = tuple(token for i, token in enumerate(right.tokens) if i not in odd)
    text = replace(right, ids=tuple(ids), spans=tuple(spans), tokens=tokens)
    assert resolve_positions(llama, text, "Spain") == (3,)
    assert resolve_positions(llama, text, "the") == (0,)
    with pytest.raises(errors.PositionError, match="offsets do not fit its ids at position 1"):
        resolve_positions(llama, text, "cat\u200b")


def test_offsets_that_drift_by_a_whole_word_are_refused_on_both_sides(llama: Model) -> None:
    """Each word of the phrase fits, and what stands before and behind does not make up the text."""
    right = tokenize(llama, "Spain cat cat cat hello")
    assert right.spans == ((0, 5), (5, 9), (9, 13), (13, 17), (17, 23))
    lying = replace(right, spans=((0, 9), (9, 13), (13, 17), (17, 23), (22, 23)))
    with pytest.raises(errors.PositionError, match="offsets do not fit its ids at position 0"):
        resolve_positions(llama, lying, "cat#2")
