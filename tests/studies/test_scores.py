"""What of a text counts as the answer about the entity."""

import numpy as np
import pytest

from patchscopes.studies.scores import Curves, answer_of, ever_resolved, uncopied
from rows import make_row


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        (
            "sentence-description",
            " a city in the U.S. state of Georgia. It is old.",
            " a city in the U.S. state of Georgia",
        ),
        ("sentence-description", " the St. Lawrence River! Yes", " the St. Lawrence River"),
        ("sentence-description", " what J. S. Bach was. More", " what J. S. Bach was"),
        ("sentence-description", " run by NASA. More", " run by NASA"),
        ("sentence-description", " a river", " a river"),
        ("entity-description", ": British monarch, Queen Elizabeth II: Queen of", ": British monarch"),
        ("entity-description", ": City in Texas, United States", ": City in Texas, United States"),
        ("question-description", " A city.\nQ: Who", " A city."),
        ("The capital of {}", " is Paris. So", " is Paris. So"),
    ],
)
def test_the_answer_ends_where_the_model_goes_on_to_others(prompt: str, text: str, answer: str) -> None:
    assert answer_of(make_row(prompt=prompt, text=text)) == answer


def test_words_that_stand_in_the_name_or_the_prompt_are_not_searched_for() -> None:
    words = ("river", "major", "delta")
    assert uncopied(words, "Niger River", "entity-description") == ("delta",), "“multinational major appliance”"
    assert uncopied(words, "Niger", "question-description") == words
    assert uncopied(("wales",), "Diana, Princess of Wales", "question-description") == ()


def test_nothing_is_hit_at_layer_0_and_donors_are_judged_as_the_cells_are() -> None:
    """Axes: one item; donors 3, layers 4. The first donor says it at ℓ 1 to 3, the second too at 2 and 3."""
    own = np.ones((1, 4))
    donors = np.array([[[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]], dtype=float)
    curves = Curves(own, donors, np.zeros(1))
    assert curves.hits.tolist() == [[False, True, False, False]], "two donors say it from ℓ 2 on"
    assert curves.donor_hits[0].tolist() == [
        [False, True, True, True],  # only the second says it too
        [False, False, True, True],
        [False, False, False, False],
    ]
    assert ever_resolved(curves.donor_hits, range(4)).tolist() == [pytest.approx(2 / 3)]
