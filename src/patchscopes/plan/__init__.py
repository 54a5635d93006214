"""Cells → Plan: what to compute, decided before anything runs and without a model at hand.

    wave     cells whose source states and prompts are in memory together
    group    cells of a wave that share a prefix: the rows of its batches come from here, refilled as rows end
    prompt   an inspection prompt, run once for all its cells

Each distinct cell stands in one group of one wave. What a wave holds, and how many rows a group runs at once, keeps
within the memory budget; and the plan says what it costs.
"""

from patchscopes.plan.compile import compile_plan
from patchscopes.plan.cost import Alone, Cost, Explanation, Speed, duration
from patchscopes.plan.plan import Plan, Runner
from patchscopes.plan.work import (
    DRAWN_AT_ONCE,
    MAX_ROWS,
    MAX_TOKENS,
    Budget,
    Group,
    ModelShape,
    Prompt,
    PromptKey,
    Side,
    SourcePass,
    Wave,
    gapless,
    layer_of,
    longest_text,
    n_run,
    placeholder,
    reads_masked,
    states_of,
    suffix_of,
    text,
    text_of,
)

__all__ = [
    "DRAWN_AT_ONCE",
    "MAX_ROWS",
    "MAX_TOKENS",
    "Alone",
    "Budget",
    "Cost",
    "Explanation",
    "Group",
    "ModelShape",
    "Plan",
    "Prompt",
    "PromptKey",
    "Runner",
    "Side",
    "SourcePass",
    "Speed",
    "Wave",
    "compile_plan",
    "duration",
    "gapless",
    "layer_of",
    "longest_text",
    "n_run",
    "placeholder",
    "reads_masked",
    "states_of",
    "suffix_of",
    "text",
    "text_of",
]
