"""Positions at which two tokenisers are about the same characters, by hand."""

from dataclasses import replace

import pytest

from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes.errors import PositionError
from patchscopes.mappings import agreeing_positions
from patchscopes.models import Model
from patchscopes.prompts import Tokenized, tokenize
from patchscopes.spec import Bos

TEXT = "the capital of Spain is hello"


def shown(model: Model, text: str = TEXT) -> list[str]:
    return list(tokenize(model, text).tokens)


def words(source: Model, target: Model, text: str = TEXT, **options: int) -> list[tuple[str, str]]:
    found = agreeing_positions(source, target, text, **options)
    ours, theirs = tokenize(source, text), tokenize(target, text)
    assert (found.source, found.target) == (ours.ids, theirs.ids)
    return [(ours.tokens[i], theirs.tokens[j]) for i, j in found.positions]


def test_within_one_model_it_is_every_position_but_the_first(llama: Model) -> None:
    n = len(tokenize(llama, TEXT))
    assert agreeing_positions(llama, llama, TEXT).positions == tuple((i, i) for i in range(1, n))
    assert agreeing_positions(llama, llama, TEXT, min_position=0).positions == tuple((i, i) for i in range(n))
    assert agreeing_positions(llama, llama, TEXT, min_position=n).positions == ()


def test_special_tokens_are_left_out() -> None:
    model = tiny_model("llama", add_bos=True)
    assert agreeing_positions(model, model, "the<eos>cat", min_position=0).positions == ((1, 1), (3, 3))
    plain = tiny_model("llama")
    text = "the cat<eos> of cat"
    assert words(plain, model, text) == [(" cat", " cat"), (" of", " of"), (" cat", " cat")]


def test_a_bos_on_one_side_moves_the_positions() -> None:
    plain, with_bos = tiny_model("llama"), tiny_model("llama", add_bos=True)
    found = agreeing_positions(plain, with_bos, TEXT)
    assert found.positions == tuple((i, i + 1) for i in range(1, len(found.source)))
    assert agreeing_positions(with_bos, plain, TEXT).positions == tuple((j, i) for i, j in found.positions)
    assert (0, 1) in agreeing_positions(plain, with_bos, TEXT, min_position=0).positions


def test_spaces_at_the_edges_do_not_count(llama: Model) -> None:
    """One has the space in its span, one leaves it out of the span, one writes it as a mark."""
    assert shown(llama)[1:3] == [" capital", " of"]
    assert shown(model_with("trimmed"))[1:3] == ["capital", "of"]
    expected = ["capital", "of", "Spain", "is", "hello"]
    for kind in ("trimmed", "metaspace", "llama-2", "gemma"):
        pairs = words(llama, model_with(kind))
        assert [(a.strip(), b.strip()) for a, b in pairs] == [(word, word) for word in expected], kind


def test_words_that_one_of_them_splits_are_left_out(llama: Model) -> None:
    """ "Wales" is one token of the first alone, "B" is one in both, and digits are split apart in the second."""
    text = "the Wales and B of 1135 x"
    trimmed = model_with("trimmed")
    assert [token.strip() for token in shown(llama, text) if len(token.strip()) == 5] == ["Wales"]
    assert "Wales" not in shown(trimmed, text)
    assert [a.strip() for a, _ in words(llama, trimmed, text)] == ["B", "of", "x"]


def test_pieces_of_one_character_agree_with_nothing(llama: Model) -> None:
    """Three tokens stand for "€" in each, with one span: none of them holds it alone."""
    text = "cat € cat"
    found = [a.strip() for a, _ in words(llama, model_with("llama-2"), text)]
    assert found == ["cat"]


def test_tokens_beyond_the_context_are_cut_off(llama: Model) -> None:
    found = agreeing_positions(llama, llama, "cat " * 300)
    assert len(found.source) == llama.max_context
    assert found.positions[-1] == (llama.max_context - 1, llama.max_context - 1)


def test_offsets_that_do_not_fit_the_ids_are_told(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model("mistral")

    def unsound(model: Model, text: str, *, bos: Bos) -> Tokenized:
        tokenized = tokenize(model, text, bos=bos)
        moved = tuple((start + 2, end + 2) for start, end in tokenized.spans)
        return replace(tokenized, spans=moved) if model is other else tokenized

    monkeypatch.setattr("patchscopes.mappings.agreeing.tokenize", unsound)
    with pytest.raises(PositionError, match="character offsets do not fit its ids"):
        agreeing_positions(llama, other, TEXT)
    assert agreeing_positions(other, other, TEXT).positions, "within one model they are not needed"
