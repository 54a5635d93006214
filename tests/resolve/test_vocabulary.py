"""Tokens that a model has no row for, and a BOS too many: refused, or warned of, wherever they come from."""

import copy
from typing import Any

import pytest

import families
import patchscopes as ps
from conftest import tiny_model
from patchscopes.errors import CandidateError, VocabularyError
from patchscopes.lenses import lens_table
from patchscopes.models import Model, wrap_in_memory

FAST: dict[str, Any] = {"prompt": "x {} ->", "source_layers": 1, "max_new_tokens": 2, "controls": ()}


@pytest.fixture(scope="module")
def extended() -> Model:
    """A model whose tokenizer was given a token, and whose embedding was not."""
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.add_tokens(["<new>"])
    return wrap_in_memory(families.build("llama"), tokenizer)


def test_a_token_that_the_embedding_lacks_is_refused(extended: Model) -> None:
    with pytest.raises(VocabularyError, match=r"the token '<new>' \(id 317\).*has 317 rows(?s:.*)> +5 +317"):
        ps.inspect(extended, "go to<new> x", **FAST)
    with pytest.raises(VocabularyError, match="resize_token_embeddings"):
        ps.inspect(extended, "the cat", **{**FAST, "prompt": "x<new> {} ->"})
    with pytest.raises(CandidateError, match=r"candidate 'a<new>' cannot be scored: .*resize_token_embeddings"):
        ps.inspect(extended, "the cat", **FAST, candidates=["cat", "a<new>"])
    with pytest.raises(VocabularyError):
        lens_table(extended, "go<new>")
    assert lens_table(extended, "the cat")


def test_one_such_source_among_others_is_a_failed_row(extended: Model) -> None:
    good, bad = ps.inspect(extended, ["the cat", "go<new> x"], **FAST)
    assert (good.status, bad.status) == ("ok", "failed")
    assert "'<new>'" in str(bad.reason)


def test_a_candidate_beyond_the_head_is_refused(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "d_vocab", 290)
    with pytest.raises(CandidateError, match="gives probabilities to ids below 290 alone"):
        ps.inspect(llama, "say the cat", **FAST, candidates=["Spain"])


def warned(sources: Any, model: Model | None = None, **options: Any) -> list[str]:
    with pytest.warns(ps.PatchscopesWarning) as caught:
        ps.inspect(model or tiny_model("llama", add_bos=True), sources, **{**FAST, **options})
    return [str(one.message) for one in caught if "two BOS" in str(one.message)]


def test_a_second_bos_is_told_wherever_it_is() -> None:
    (told,) = warned("<bos>the cat")
    assert "source 0 ('<bos>the cat') has <bos> at positions 0 and 1" in told
    (told,) = warned(ps.Source("<bos>the cat", split=("<bos>", "the cat")))
    assert "source 0" in told
    (told,) = warned("the cat", prompt="<bos>x {} ->")
    assert "inspection prompt '<bos>x {} ->' has <bos> at positions 0 and 1" in told
    (told,) = warned("the cat", prompt=ps.InspectionPrompt("<bos>x {} ->", chat=True))
    assert "inspection prompt" in told
    assert warned([f"<bos>the cat {n}" for n in range(5)])[3:] == ["two BOS: so have 2 more texts."]


def test_a_chat_template_that_adds_one_is_told() -> None:
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.chat_template = "<bos><bos>" + str(tokenizer.chat_template).removeprefix("<bos>")
    model = wrap_in_memory(families.build("llama"), tokenizer)
    assert warned("say the cat", model, prompt=ps.InspectionPrompt("x {} ->", chat=True))


@pytest.mark.parametrize("control", ["text-only", "phrase-only"])
def test_a_bos_that_is_only_text_to_the_source_is_told_in_the_prompt(control: str) -> None:
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.bos_token = None
    source = wrap_in_memory(families.build("llama"), tokenizer)
    target = tiny_model("llama", add_bos=True)
    (told,) = warned("go <bos>the", source, target_model=target, controls=(control,), at="go <bos>the")
    assert f"{control} of 'go <bos>the' has <bos> at positions 0 and" in told
