"""The inspection-prompt library, and how a value is told from a name (rules 7 and 11)."""

import dataclasses
import re

import pytest

from conftest import tiny_model
from odd_tokenizers import MAKERS, model_with
from patchscopes import errors
from patchscopes.prompts import LIBRARY, find_prompt, resolve_target
from patchscopes.prompts.placeholders import MARK
from patchscopes.spec import InspectionPrompt

# The names that scripts rely on; a prompt may be added, but none may go or change its name.
PROMISED = {"entity-description", "token-identity", "sentence-description", "selfie", "country-capital"}


@pytest.mark.parametrize("name", LIBRARY)
def test_every_prompt_says_what_it_is_about_and_has_a_placeholder(name: str) -> None:
    prompt = LIBRARY[name]
    assert prompt.name == name == prompt.label
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), "a name without {} and without spaces"
    assert len(prompt.about) > 10
    assert prompt.placeholder
    assert MARK in prompt.text
    assert prompt.text == prompt.text.strip(), "a space at the end would be a token of its own"


def test_prompts_carry_no_stop() -> None:
    assert "stop" not in {field.name for field in dataclasses.fields(InspectionPrompt)}


def test_the_promised_prompts_are_there() -> None:
    assert set(LIBRARY) >= PROMISED
    assert LIBRARY["token-identity"].placeholder == "?"
    assert LIBRARY["selfie"].chat
    assert LIBRARY["selfie"].text.count(MARK) > 1


def test_no_two_prompts_are_the_same() -> None:
    assert len({prompt.text for prompt in LIBRARY.values()}) == len(LIBRARY)


@pytest.mark.parametrize("kind", [*MAKERS, "byte-level", "byte-level with BOS"])
def test_every_prompt_resolves_on_every_kind_of_tokenizer(kind: str) -> None:
    model = model_with(kind) if kind in MAKERS else tiny_model("llama", add_bos="BOS" in kind)
    for prompt in LIBRARY.values():
        target = resolve_target(model, prompt)
        assert len(target.positions) == prompt.text.count(MARK)
        covered = {target.tokenized.tokens[position].strip() for position in target.positions}
        assert covered == {prompt.placeholder}


def test_the_library_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        LIBRARY["mine"] = InspectionPrompt("{}")  # type: ignore[index]


def test_a_name_is_looked_up_and_text_is_text() -> None:
    assert find_prompt("token-identity") == LIBRARY["token-identity"]
    free = find_prompt("token-identity {}")
    assert (free.name, free.placeholder, free.label) == (None, None, "token-identity {}")
    mine = InspectionPrompt("cat {}", name="mine")
    assert find_prompt(mine) == mine


def test_the_given_placeholder_overrides_the_prompts_own_in_a_copy() -> None:
    assert find_prompt("token-identity", placeholder="x").placeholder == "x"
    assert LIBRARY["token-identity"].placeholder == "?"
    assert find_prompt("cat {}", placeholder="?").placeholder == "?"
    assert find_prompt(InspectionPrompt("cat {}", placeholder="a"), placeholder="b").placeholder == "b"


@pytest.mark.parametrize("value", ["", "token identity", "Token-Identity", "the capital of x", "{", "token-identity\n"])
def test_neither_a_name_nor_text_is_one_error_that_says_both(value: str) -> None:
    with pytest.raises(errors.PromptError, match=r"neither an inspection prompt with .*nor one of the library"):
        find_prompt(value)
