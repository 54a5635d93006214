"""The inspection prompts of the library and of our own relations, on the tokenizers of real models."""

import pytest

import patchscopes as ps
from patchscopes.data import load_relations
from patchscopes.models import Model
from patchscopes.prompts import LIBRARY, resolve_target

pytestmark = pytest.mark.real


@pytest.fixture(params=["smol", "gemma"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", [name for name, prompt in LIBRARY.items() if not prompt.chat])
def test_every_library_prompt_has_its_placeholder_to_itself(model: Model, name: str) -> None:
    found = resolve_target(model, LIBRARY[name], bos="auto")
    for position in found.positions:
        assert found.tokenized.tokens[position].strip() == found.placeholder


def test_every_relation_of_our_own_can_be_asked_with_its_first_template(model: Model) -> None:
    for relation in load_relations(None).items:
        prompt = ps.InspectionPrompt(relation.prompt_templates[0], placeholder="x")
        assert resolve_target(model, prompt, bos="auto").positions, relation.name
