"""What of a text counts as the answer about the entity."""

import pytest

from patchscopes.studies.scores import answer_of
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
