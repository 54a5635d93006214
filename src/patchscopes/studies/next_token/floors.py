"""How likely the next token is where no state of a source is written: in the prompt as it is, and with zero written.

These two controls have a row for all places together, which is compared with none of them. So their
`surprisal_under_patched` is made here: the distribution of each, read at the next tokens of all places.
"""

from collections.abc import Sequence
from dataclasses import replace

from patchscopes.errors import DataError
from patchscopes.resolve import resolve
from patchscopes.run import run_cells
from patchscopes.spec import Readout, Result
from patchscopes.studies.next_token.design import Design
from patchscopes.studies.setup import Stage
from patchscopes.studies.texts import Place as Layers

SOURCELESS = ("unpatched", "zero")
Key = tuple[str | None, str | None, Layers]  # prompt, control, (ℓ, ℓ*)


def floors(design: Design, stage: Stage, next_ids: Sequence[int]) -> dict[Key, dict[int, float]]:
    """−ln p of each of `next_ids`, for each row of `stage` that has no source. Raises DataError where one failed."""
    setup = design.setup
    transfer = stage.transfer or design.unmapped
    some = replace(stage.sweep, sources=stage.sweep.sources[:1], controls=SOURCELESS)
    distinct = tuple(dict.fromkeys(next_ids))
    cells = {}
    for request in resolve(transfer, transfer.named(some)).requests:
        if request.control in SOURCELESS and request.cell is not None and request.status == "ok":
            key = request.prompt, request.control, (request.source_layer, request.target_layer)
            cells[key] = replace(
                request.cell, readout=Readout("candidates"), candidates=tuple((token,) for token in distinct)
            )
    results = run_cells(setup.model, setup.runner(transfer), list(cells.values()), setup.budget())
    return {key: _surprisals(key, distinct, result) for key, result in zip(cells, results, strict=True)}


def _surprisals(key: Key, tokens: Sequence[int], result: Result) -> dict[int, float]:
    """−ln p of each token."""
    if result.logprobs is None:
        raise DataError(f"{key[1]} at (ℓ, ℓ*) = {key[2]} failed, and has no surprisals: {result.failure}")
    return {token: -logprob for token, logprob in zip(tokens, result.logprobs, strict=True)}
