"""The inspection-prompt library. Library prompts carry no stop of their own (rule 11).

Sources: the paper is Ghandeharioun et al. 2024 (arXiv 2401.06102); SelfIE is Chen et al. 2024 (arXiv 2403.10949).
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from types import MappingProxyType

from patchscopes.errors import PromptError
from patchscopes.numbers import plain
from patchscopes.sources import prompt_faults
from patchscopes.spec import InspectionPrompt

_PROMPTS = (
    InspectionPrompt(
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
        "major appliance and consumer electronics corporation, {}",
        name="entity-description",
        placeholder="x",
        about="what entity a state stands for, in a few words (paper, 4.3)",
    ),
    InspectionPrompt(
        "cat -> cat\n1135 -> 1135\nhello -> hello\n{}",
        name="token-identity",
        placeholder="?",
        about="which token a state stands for; read its next token (paper, 4.1)",
    ),
    InspectionPrompt(
        "Syria is a country in the Middle East. Leonardo DiCaprio is an American actor. Samsung is a South Korean "
        "company that makes electronics. {} is",
        name="sentence-description",
        placeholder="x",
        about="what entity a state stands for, in a full sentence",
    ),
    InspectionPrompt(
        "Q: Who or what is Syria?\nA: Country in the Middle East.\nQ: Who or what is Leonardo DiCaprio?\nA: American "
        "actor.\n"
        "Q: Who or what is Samsung?\nA: South Korean company that makes electronics.\nQ: Who or what is {}?\nA:",
        name="question-description",
        placeholder="x",
        about="what entity a state stands for, as the answer to a question",
    ),
    InspectionPrompt(
        "Message: {} {} {} {} {}\nIn one sentence, what is the message about?",
        name="selfie",
        placeholder="x",
        chat=True,
        reply="The message is about",
        about="a chat in which the model interprets five copies of a state (after SelfIE); needs a chat template",
    ),
    *(
        InspectionPrompt(text, name=name, placeholder="x", about=f"attribute: {about}")
        for name, text, about in (
            ("country-capital", "The capital city of {}", "capital of a country"),
            ("country-largest-city", "The largest city in {}", "largest city of a country (paper, 4.2)"),
            ("country-currency", "The official currency of {}", "currency of a country (paper, 4.2)"),
            ("company-ceo", "The current CEO of {}", "head of a company (paper, 4.2)"),
            ("product-company", "The company that makes {}", "maker of a product (paper, 4.2)"),
            ("food-country", "The country of origin of the dish {}", "country of a dish (paper, 4.2)"),
            ("fruit-inside-color", "On the inside, the color of {}", "inner color of a fruit (paper, 4.2)"),
            ("fruit-outside-color", "On the outside, the color of {}", "outer color of a fruit (paper, 4.2)"),
            ("object-superclass", "The broader category that contains {}", "superclass of an object (paper, 4.2)"),
            ("substance-phase", "At room temperature, the phase of {}", "phase of a substance (paper, 4.2)"),
            ("task-tool", "The tool that is used for the task of {}", "tool for a task (paper, 4.2)"),
            ("person-sport", "The professional sport played by {}", "sport of an athlete (paper, 4.2)"),
            ("person-sport-position", "The position in team sport played by {}", "position of an athlete (paper, 4.2)"),
            ("star-constellation", "The constellation that contains the star {}", "constellation (paper, 4.2)"),
        )
    ),
)

LIBRARY: Mapping[str, InspectionPrompt] = MappingProxyType({str(prompt.name): prompt for prompt in _PROMPTS})


def find_prompt(
    value: str | InspectionPrompt,
    *,
    placeholder: str | None = None,
    at: str | int | None = None,
    mask: str | None = None,
) -> InspectionPrompt:
    """The library prompt of that name, or free text where `value` holds `{}` or its position is named `at` (rule 7).

    `placeholder`, `at` and `mask` override the prompt's own. Raises PromptError for a value that is neither, and for an
    InspectionPrompt with a field of another type.
    """
    if isinstance(value, InspectionPrompt):
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        # None is the default of a field, as it is of an option.
        prompt = replace(
            value,
            **{
                f.name: f.default
                for f in fields(value)
                if f.init and given[f.name] is None and f.default is not MISSING
            },
        )
        if faults := prompt_faults({name: getattr(prompt, name) for name in given}):
            raise PromptError(f"the inspection prompt {value.text!r} cannot be used: {faults}.")
    elif not isinstance(value, str):
        raise PromptError(f"an inspection prompt is a text or an InspectionPrompt, not a {type(value).__name__}.")
    elif "{}" in value or (at is not None and value not in LIBRARY):
        prompt = InspectionPrompt(value)
    elif value in LIBRARY:
        prompt = LIBRARY[value]
    else:
        raise PromptError(
            f'{value!r} is neither an inspection prompt with "{{}}" for the placeholder, as in "The capital of {{}}", '
            f"nor one of the library: {', '.join(LIBRARY)}. (A text without placeholder needs target_at, the token to "
            "overwrite.)"
        )
    return replace(
        prompt,
        placeholder=prompt.placeholder if placeholder is None else placeholder,
        at=plain(prompt.at if at is None else at),
        mask=prompt.mask if mask is None else mask,
    )
