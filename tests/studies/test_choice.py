"""The choice of ℓ and ℓ*: made by the entities that have all results, and never at ℓ 0."""

from pathlib import Path

import pytest

from patchscopes.data import load_entities
from patchscopes.errors import DataError
from patchscopes.spec import Cell
from patchscopes.studies.choice import choose_layers
from patchscopes.studies.setup import Setup
from patchscopes.studies.tokenization.design import Design
from study_cases import Failing, Saying, data_file, long_model, made_up, planted


def design_of(folder: Path, runner: Saying) -> Design:
    setup = Setup.of(long_model(), {"quick": True, "runner": lambda _: runner})
    return Design.of(setup, load_entities(data_file(folder)).items)


def test_the_planted_layer_is_chosen_and_layer_0_never(tmp_path: Path) -> None:
    """Layers 0 and 4 of the steps 0, 4 say the name, at either ℓ*: of equals the first ℓ*."""
    choice, missing = choose_layers(design_of(tmp_path, planted(made_up(), (0, 4))))
    assert (choice.target_layer, choice.headline) == (0, 4)
    assert 0 not in set(choice.table.source_layer)
    assert not missing
    assert str(choice) == "ℓ* = 0, ℓ = 4"


class Straight(Saying):
    """Says the entity's keyword where its state of layer 4 is written back at layer 4."""

    def __init__(self) -> None:
        known = planted(made_up(), (4,))

        def say(cell: Cell) -> str:
            return known.say(cell) if cell.write and cell.write.site.layer == 4 else ": nothing"

        super().__init__(say, known.score)


def test_the_same_layer_can_be_chosen_where_it_is_a_candidate(tmp_path: Path) -> None:
    design = design_of(tmp_path, Straight())
    choice, _ = choose_layers(design, same=True)
    assert (choice.target_layer, choice.headline, choice.target) == (None, 4, "ℓ* = ℓ")
    assert set(choice.table.target) == {"ℓ* = 0", "ℓ* = 1", "ℓ* = ℓ"}
    fixed, _ = choose_layers(design)
    assert fixed.target_layer == 0, "of candidates that say nothing, the first"


def test_names_that_lack_a_result_do_not_choose_and_are_told_of(tmp_path: Path) -> None:
    whole = design_of(tmp_path, planted(made_up(), (4,)))
    failing = whole.choosing[0].name
    choice, missing = choose_layers(design_of(tmp_path, Failing((failing,))))
    lost = {exclusion.item for exclusion in missing}
    assert failing in lost
    assert {exclusion.reason for exclusion in missing} == {"logits not finite"}
    assert lost | set(choice.chose) == {entity.name for entity in whole.choosing}
    assert len(lost) + len(choice.chose) == len(whole.choosing)


def test_where_all_fail_the_first_reason_is_given(tmp_path: Path) -> None:
    names = tuple(str(entry["name"]) for entry in made_up())
    with pytest.raises(DataError, match=r"no entity that chooses has all results.*logits not finite"):
        choose_layers(design_of(tmp_path, Failing(names)))
