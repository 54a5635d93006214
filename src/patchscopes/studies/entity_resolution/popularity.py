"""How likely a model finds a name: the mean ln p of its tokens behind the carrier, beside the editor's tier."""

from collections.abc import Sequence

from patchscopes.data import Entity
from patchscopes.prompts import continuation, tokenize
from patchscopes.run import run_cells
from patchscopes.spec import Cell, Decoding, Readout
from patchscopes.studies.entities import CARRIER
from patchscopes.studies.setup import Setup


def name_logprobs(setup: Setup, entities: Sequence[Entity]) -> dict[str, tuple[float, int]]:
    """Each name → (mean ln p per token, in nats; number of tokens)."""
    model = setup.model
    before = tokenize(model, CARRIER.removesuffix("{}").rstrip(), bos="auto")
    ids = [continuation(model, before, entity.name, chat=False, bos="auto") for entity in entities]
    cell = Cell(model.identity, model.dtype_name, before.ids, None, Readout("candidates"), Decoding(), 0, tuple(ids))
    (result,) = run_cells(model, setup.runner(model), [cell], setup.budget())
    assert result.logprobs is not None
    return {
        entity.name: (logprob / len(tokens), len(tokens))
        for entity, logprob, tokens in zip(entities, result.logprobs, ids, strict=True)
    }
