"""Waves of a tight budget: a prefix whose prompts were run in another wave is run again."""

import pytest
import torch

from patchscopes.compute import compute_of
from patchscopes.engine.prompts import RunPrompts
from patchscopes.models import Model
from patchscopes.plan import Prompt

IDS = (17, 33, 60, 21, 45, 70)
PREFIX = IDS[:4]


@pytest.mark.parametrize("family_prompts", [[], [Prompt((9, 8, 7), 1, (0,))]], ids=["none", "another"])
def test_a_prefix_that_no_prompt_of_the_wave_begins_with_is_run(llama: Model, family_prompts: list[Prompt]) -> None:
    """Controls that write nothing may be alone in their wave (seen with a budget of 3 MiB)."""
    compute = compute_of(llama)
    alone = RunPrompts(llama, compute, family_prompts).shared(PREFIX)
    beside = RunPrompts(llama, compute, [Prompt(IDS, 4, (1,))]).shared(PREFIX)
    for one, other in zip(alone, beside, strict=True):
        assert one.n_tokens == len(PREFIX)
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)
