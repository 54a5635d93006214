"""The parts of cross-model: which names are asked for, where passages are ended, which tokens are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cross_cases import SMALL, relations, source_model, target_model
from odd_tokenizers import model_with
from patchscopes.data import Passage, load_prose
from patchscopes.studies import setup
from patchscopes.studies.cross_model import design
from patchscopes.studies.cross_model.facts import cases_of
from patchscopes.studies.cross_model.names import IN_PROSE, asked_names, names_in
from patchscopes.studies.cross_model.openings import AGAIN, FIRST, LAST, deal
from patchscopes.studies.cross_model.tokens import ENDS, PIECE, SEVERAL, Vocabulary, akin, incomparable, same


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(design, "QUICK", SMALL)
        yield


def test_a_name_that_the_prose_has_is_not_asked_for() -> None:
    plan = design.Design.of(setup.Setup.across(source_model(), {"target_model": target_model(), "quick": True}))
    names = asked_names(relations().items, 0)
    before, _ = cases_of(plan, relations().items, names, [])
    name = before[0].facts[0].subject
    cases, excluded = cases_of(plan, relations().items, names, [Passage(f"All of it was in {name.upper()}.", "s")])
    assert name in {fact.subject for case in before for fact in case.facts}
    assert name not in {fact.subject for case in cases for fact in case.facts}
    assert f"{before[0].name}: {name}" in {e.item for e in excluded if e.reason == IN_PROSE}
    assert names_in(names, [Passage(f"un{name}s and {name}ish", "s")]) == frozenset(), "whole words alone"


def test_an_opening_is_taken_once(tmp_path: Path) -> None:
    """Of passages that begin alike there are no more openings than places to end them."""
    for k in range(100):
        text = f"The very same words stand at the start of each of these, of which this is the number {k}.\n"
        (tmp_path / f"{k}.txt").write_text(text, encoding="utf-8")
    models, shares = (source_model(), target_model()), (0.8, 0.1, 0.1)
    texts = deal(models, load_prose(tmp_path), shares, n_most=100, fewest=10, seed=0)
    assert len({opening.text for opening in texts.openings}) == len(texts.openings) <= LAST - FIRST + 1
    n_compared = 100 - len(texts.fit) - len(texts.held_out)
    assert sum(e.reason == AGAIN for e in texts.excluded) == n_compared - len(texts.openings) > 20


@pytest.mark.parametrize("kind", ["gemma", "llama-2", "metaspace"])
def test_tokens_of_two_vocabularies_are_compared_as_text(kind: str) -> None:
    ours, theirs = Vocabulary(source_model()), Vocabulary(model_with(kind))
    (cat,) = source_model().tokenizer(" cat", add_special_tokens=False)["input_ids"]
    piece = model_with(kind).tokenizer.convert_tokens_to_ids("▁cat")
    assert ours.text(cat) == theirs.text(piece) == " cat"
    assert incomparable(" cat", theirs) == ""
    assert incomparable(ours.text(source_model().tokenizer.eos_token_id), theirs) == ENDS
    assert incomparable("\ufffd", theirs) == PIECE
    assert incomparable(" unheard", theirs) == SEVERAL
    assert [same(" cat", said) for said in (" cat", "cat", "", " ca")] == [True, False, False, False]
    assert [akin(" cat", said) for said in (" cat", "cat", "", " ca", " dog")] == [True, True, False, True, False]
    assert not same("", "")
