"""A patched next-token distribution beside the one of the source's own run (rule 14).

ln p of any token follows from that of the likeliest and two logits: the normaliser is the same for both.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Head
from patchscopes.engine.states import States
from patchscopes.readouts import Compared, NextTokens
from patchscopes.spec import State


def compare(
    head: Head, states: States, x: Float[Tensor, "row d_head_in"], patched: NextTokens, wanted: Sequence[State]
) -> Iterator[Compared]:
    """Of each row: its source's likeliest token, and how surprised either is at what the other says."""
    said, named = states.said(wanted), patched.tokens[:, :1]
    both = torch.cat((named, said.tokens[:, None].to(named.device)), dim=1)
    of_patched, of_source = head.token_logits(x, both), states.source_compute.head.token_logits(said.x, both)
    under_patched = patched.logprobs[:, 0] + of_patched[:, 1] - of_patched[:, 0]
    under_source = said.logprobs + of_source[:, 0] - said.logits
    columns = (said.tokens, said.logprobs, -under_source, -under_patched)
    for token, logprob, surprisal_under_source, surprisal_under_patched in zip(
        *(c.tolist() for c in columns), strict=True
    ):
        yield Compared(token, logprob, surprisal_under_source, surprisal_under_patched)
