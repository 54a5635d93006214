"""The reference runner: the method as the paper tells it, one cell at a time, with nothing shared and nothing cached.

    1. Run the model on the source prompt and take the state at layer ℓ and position i.
    2. Run it on the inspection prompt, writing that state at layer ℓ* over the placeholder i*.
    3. Go on generating: each step runs the whole text again, with the write made again.

It is the oracle that every faster runner equals token for token (rule 9), and the baseline that they are timed
against.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.hooks import LayerWrite, Places, capture, patch
from patchscopes.models import Model
from patchscopes.plan import Plan
from patchscopes.readouts import Writing, candidates_result, choose, next_token_results, top2_gap
from patchscopes.spec import Cell, Ids, Result, State
from patchscopes.vectors import make_vectors


class Reference:
    """Runs a Plan's cells one by one; of the plan it uses the cells alone."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell, in the plan's order, each with the top-2 gap of every step."""
        for index, cell in enumerate(plan.cells):
            yield self.run_cell(cell, index)

    def run_cell(self, cell: Cell, index: int = 0) -> Result:
        """Run one cell."""
        with patch(self.model, self._writes(cell)):
            ids = list(cell.target_ids)
            logits = self._logits(ids)
            if cell.readout.kind == "next-token":
                return next_token_results(self.model, logits, [cell], [index])[0]
            if cell.readout.kind == "candidates":
                return candidates_result([self._logprob(ids, answer) for answer in cell.candidates], index)
            writing, gaps = Writing(self.model, cell), [top2_gap(logits[0])]
            while not writing.add(choose(logits[0], cell, len(writing.token_ids))):
                logits = self._logits([*ids, *writing.token_ids])
                gaps.append(top2_gap(logits[0]))
        return writing.result(index, gaps)

    def _logprob(self, prompt: Sequence[int], answer: Ids) -> float:
        """Σ ln p(token) over the answer's tokens, from one run of the prompt with the answer behind it."""
        logits = self.model.all_logits(torch.tensor([[*prompt, *answer]], device=self.model.device))[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        return float(logprobs[range(len(answer)), answer].sum())

    def states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_model"]:
        """The hidden states that are wanted, in float32, each from a source run of its own."""
        return torch.stack([self.state(state).float() for state in wanted])

    def state(self, wanted: State) -> Float[Tensor, " d_model"]:
        """The hidden state of the source run at the wanted layer and position."""
        with capture(self.model, {wanted.layer: Places((0,), (wanted.position,))}) as states:
            self._logits(wanted.ids)
        return states[wanted.layer][0]

    def _writes(self, cell: Cell) -> list[LayerWrite]:
        if cell.write is None:
            return []
        vectors = make_vectors(cell.write.vectors, self.states, self.model)
        places = Places((0,) * len(cell.write.positions), cell.write.positions)
        return [LayerWrite(cell.write.site.layer, places, vectors)]

    def _logits(self, ids: Sequence[int] | Ids) -> Float[Tensor, "row d_vocab"]:
        return self.model.next_logits(torch.tensor([ids], device=self.model.device))
