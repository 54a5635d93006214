"""Made-up rows for tests of what presents them."""

import math
from dataclasses import replace

from patchscopes.results import Results
from patchscopes.spec import Row, TopToken

MADE_BY = {"model": {"id": "tiny", "weights": "sha256:ab", "dtype": "float32"}, "spec": {"seed": 3}}


def make_row(**changes: object) -> Row:
    row = Row(
        cell="c0",
        source="I went to Spain",
        source_index=0,
        position=3,
        token=" Spain",
        source_layer=2,
        target_layer=2,
        target_positions=(4,),
        prompt="country-capital",
        control=None,
        draw=0,
        sample=0,
        text=" Madrid",
        token_ids=(5, 6),
        finish_reason="length",
        top=None,
        entropy=None,
        candidate=None,
        logprob=None,
        logprob_per_token=None,
        logprob_minus_unpatched=None,
        rank=None,
        answer_surprisal=None,
        source_next=None,
        agrees=None,
        surprisal_under_source=None,
        surprisal_under_patched=None,
        expected=None,
        flags=(),
        status="ok",
        reason=None,
        model="tiny",
        target_model="tiny",
        mapping=None,
        seed=3,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def results(*rows: Row, complete: bool = True) -> Results:
    return Results(rows, complete=complete, **MADE_BY)


FAILED = make_row(
    cell=None,
    source="",
    source_index=1,
    position=None,
    token=None,
    source_layer=None,
    target_layer=None,
    target_positions=(),
    prompt=None,
    text=None,
    token_ids=None,
    finish_reason=None,
    status="failed",
    reason="empty",
)
NEXT = make_row(
    text="Madrid",
    token_ids=(5,),
    entropy=2.5,
    expected=True,
    flags=("sink", "leaked"),
    top=(TopToken(" Madrid", 5, -0.25), TopToken("\ufffd", 7, -math.inf)),
)
