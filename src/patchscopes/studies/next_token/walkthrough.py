"""One place, layer by layer, for a reader who sees it for the first time: what each method says, and the controls."""

import numpy as np

from patchscopes.studies.next_token.design import CONTROLS, FIXED_PROMPT, LABELS, METHODS, TUNED
from patchscopes.studies.next_token.findings import depth
from patchscopes.studies.next_token.readings import PRECISION, UNDER_PATCHED, Readings
from patchscopes.studies.walk import sentence

LONGEST = 300  # characters of the passage that are shown


def walkthrough(readings: Readings) -> str:
    """The page: of the place that is most like the average, as token identity reads it."""
    k = typical(readings)
    place, design = readings.design.places[k], readings.design
    said, following = sentence(place.before[-LONGEST:]), _token(str(readings.next_tokens[k]))
    return "\n".join(
        [
            f"# One place, layer by layer, in {design.setup.model.id}",
            "",
            f"The model reads “{'… ' * (len(place.before) > LONGEST)}{said}” and would go on with {following}. At its "
            f"last token, {_token(place.token)}, there is a vector after each number ℓ of blocks. Each column reads "
            "that vector in its own way, and says the likeliest next token; in brackets, how surprised it would be, in "
            f"nats, by {following} (0: not at all; 2.3: it gives it a tenth). **Bold** is right.",
            "",
            f"| ℓ | {' | '.join(LABELS[name] for name in METHODS)} |",
            f"|---|{'---|' * len(METHODS)}",
            *(_line(readings, k, column) for column in range(len(design.layers))),
            "",
            *_controls(readings, k),
            "How to read it: a column counts for the state only where the controls do not say the same. A layer at "
            "which nothing is right has not shown that the next token is absent from the state, only that this way of "
            "reading does not bring it out. This place is the one whose precision over ℓ, by token identity with the "
            "paper's prompt, is nearest to the mean of all places: it is typical, not the best.",
            "",
        ]
    )


def typical(readings: Readings) -> int:
    """The place with controls whose precision is nearest to the mean of all; the first of equals."""
    among = readings.controlled or readings.items
    mean = depth(readings, FIXED_PROMPT, PRECISION, readings.items).mean()
    return among[int(np.abs(depth(readings, FIXED_PROMPT, PRECISION, among) - mean).argmin())]


def _line(readings: Readings, k: int, column: int) -> str:
    cells = []
    for name in METHODS:
        reading = readings.methods[name]
        token = _token(str(reading.said[k, column]))
        right = reading.scores[PRECISION][k, column] == 1
        surprisal = reading.scores[UNDER_PATCHED][k, column]
        cells.append(f"{f'**{token}**' if right else token} ({surprisal:.1f})")
    return f"| {readings.design.layers[column]} | {' | '.join(cells)} |"


def _controls(readings: Readings, k: int) -> list[str]:
    """What the controls say in the middle of the ℓ that have them, for token identity and a lens."""
    if k not in readings.controlled:
        return []
    column = len(readings.design.coarse) // 2
    lines = [f"Beside it, at ℓ = {readings.design.coarse[column]}:", ""]
    for name in (FIXED_PROMPT, TUNED):
        said = readings.methods[name].beside_said
        listed = ", ".join(f"{control} {_token(str(said[control][k, column]))}" for control in CONTROLS)
        lines.append(f"- {LABELS[name]}: {listed}")
    lines += [
        "",
        "(unpatched: the inspection prompt as it is; random: noise of the same length; random-state: a state of an "
        "unrelated sentence; shuffled: another passage's state; mean: the mean of all others; zero: nothing at all, "
        f"and for the {LABELS[TUNED]} its bias alone.)",
        "",
    ]
    return lines


def _token(text: str) -> str:
    """A token in quotes; white space by signs for it."""
    return f"“{sentence(text)}”" if text.strip() else f"“{text.replace(chr(10), '↵').replace(' ', '␣')}”"
