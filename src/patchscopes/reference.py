"""The reference runner: the method as the paper tells it, one cell at a time, with nothing shared and nothing cached.

    1. Run the model on the source prompt and take the state at layer ℓ and position i.
    2. Run it on the inspection prompt, writing that state at layer ℓ* over the placeholder i*.
    3. Go on generating: each step runs the whole text again, with the write made again.

It is the oracle that every faster runner equals token for token (rule 9), and the baseline that they are timed
against. Where the caller has hooks on the model, or forwards of their own, the prompt runs once and then a token a
pass, behind the model's own cache, as in its own `generate` (rule 0).
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.alone import Alone
from patchscopes.foreign import running
from patchscopes.hooks import LayerWrite, Places, capture, patch
from patchscopes.mappings import Transfer
from patchscopes.models import Inputs, Model, calm
from patchscopes.plan import Plan, longest_text
from patchscopes.readouts import (
    Compared,
    Writing,
    candidates_result,
    choose,
    next_token_results,
    top2_gap,
    with_comparison,
)
from patchscopes.spec import Cell, Ids, Result, State
from patchscopes.vectors import make_vectors


class Reference:
    """Runs a Plan's cells one by one; of the plan it uses the cells alone. It is a `vectors.StateSource`."""

    def __init__(self, model: Model | Transfer) -> None:
        self.transfer = Transfer.of(model)
        self.model = self.transfer.target
        self.widths = self.transfer.source.d_model, self.model.d_model
        self.mapped = self.transfer.mapped

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell, in the plan's order, each with the top-2 gap of every step."""
        for model in self.transfer.models:
            with running(model.id):
                model.is_private(longest_text(plan.cells))  # found out before anything runs
        for index, cell in enumerate(plan.cells):
            yield self.run_cell(cell, index)

    @calm()
    def run_cell(self, cell: Cell, index: int = 0) -> Result:
        """Run one cell."""
        writes = self._writes(cell)
        if cell.readout.kind == "candidates":
            scores = [self._logprob(cell, answer, writes) for answer in cell.candidates]
            return candidates_result(scores, index)
        text = _text(self.model, cell, writes)
        logits = text.prompt()
        if cell.readout.kind == "next-token":
            return self._compared(cell, logits, next_token_results(self.model, logits, [cell], [index])[0])
        writing, gaps = Writing(self.model, cell), [top2_gap(logits[0])]
        while not writing.add(choose(logits[0], cell, len(writing.token_ids))):
            logits = text.token(writing.token_ids[-1])
            gaps.append(top2_gap(logits[0]))
        return writing.result(index, gaps)

    def states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_source"]:
        """The hidden states of the source model that are wanted, in float32, each from a run of its own."""
        return torch.stack([self.state(state).float() for state in wanted])

    def state(self, wanted: State) -> Float[Tensor, " d_source"]:
        """The hidden state of the source run at the wanted layer and position."""
        return _state(self.transfer.source, wanted)

    def own_states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_model"]:
        """The same of the target model."""
        return torch.stack([_state(self.model, state).float() for state in wanted])

    def _logprob(self, cell: Cell, answer: Ids, writes: Sequence[LayerWrite]) -> float:
        """Σ ln p(token) over the answer's tokens, in one run of prompt and answer where that is sound."""
        if self.model.attached or cell.masked:
            # What a hook does may depend on the pass, and what a masked prompt's last token sees, no later one may see.
            text = _text(self.model, cell, writes)
            runs = [text.prompt()[0], *(text.token(token)[0] for token in answer[:-1])]
            return sum(float(torch.log_softmax(run, dim=-1)[k]) for run, k in zip(runs, answer, strict=True))
        prompt = cell.target_ids
        ids = torch.tensor([[*prompt, *answer]], dtype=torch.long, device=self.model.device)
        with patch(self.model, writes):
            logits = self.model.all_logits(ids)[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        return float(logprobs[range(len(answer)), answer].sum())

    def _compared(self, cell: Cell, patched: Float[Tensor, "row d_vocab"], result: Result) -> Result:
        """The result beside the next token of the source's own run (rule 14)."""
        if cell.compare is None:
            return result
        state = cell.compare
        logits = next_logits(self.transfer.source, state.ids[: state.position + 1], state.masked)
        source_p, patched_p = torch.log_softmax(logits[0], dim=-1), torch.log_softmax(patched[0], dim=-1)
        said, named = int(source_p.argmax()), int(patched_p.argmax())
        found = Compared(said, float(source_p[said]), -float(source_p[named]), -float(patched_p[said]))
        return with_comparison(self.model, result, found)

    def _writes(self, cell: Cell) -> list[LayerWrite]:
        if cell.write is None:
            return []
        vectors = make_vectors(cell.write.vectors, self, [cell.mapping] * len(cell.write.vectors))
        places = Places((0,) * len(cell.write.positions), cell.write.positions)
        return [LayerWrite(cell.write.site.layer, places, vectors)]


class _WholeText:
    """A patched text that runs whole at each step, with its write made anew."""

    def __init__(self, model: Model, cell: Cell, writes: Sequence[LayerWrite]) -> None:
        self._model, self._masked, self._writes = model, cell.masked, writes
        self._ids = list(cell.target_ids)

    def prompt(self) -> Float[Tensor, "row d_vocab"]:
        """Run the inspection prompt."""
        with patch(self._model, self._writes):
            return next_logits(self._model, self._ids, self._masked)

    def token(self, token: int) -> Float[Tensor, "row d_vocab"]:
        """Run it with one token more behind it."""
        self._ids.append(token)
        return self.prompt()


class _InTwoPhases:
    """A patched text that runs as in the model's own `generate`: its write falls into the pass of the prompt."""

    def __init__(self, model: Model, cell: Cell, writes: Sequence[LayerWrite]) -> None:
        self._model, self._writes = model, writes
        self._alone = Alone(model, cell.target_ids, cell.masked)
        self.token = self._alone.token

    def prompt(self) -> Float[Tensor, "row d_vocab"]:
        """Run the inspection prompt."""
        with patch(self._model, self._writes):
            return self._alone.prompt()


def _text(model: Model, cell: Cell, writes: Sequence[LayerWrite]) -> _WholeText | _InTwoPhases:
    return _InTwoPhases(model, cell, writes) if model.attached else _WholeText(model, cell, writes)


def next_logits(model: Model, ids: Sequence[int], masked: Sequence[int] = ()) -> Float[Tensor, "row d_vocab"]:
    """Logits after the last of `ids`; of `masked` positions nothing is seen but by themselves.

    Of a masked position the only one that is read, if any, is the last: it sees itself, and no later one sees it.
    """
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.device)
    if not masked and not (model.attached and model.counts_mask):  # a hook may act on how the mask is counted
        return model.next_logits(tokens)
    mask = torch.ones_like(tokens)
    mask[0, list(masked)] = 0
    mask[0, -1] = 1
    places = torch.arange(len(ids), dtype=torch.long, device=model.device)[None]
    return model.forward(Inputs(tokens, mask, places), "last")[:, -1].float()


def _state(model: Model, wanted: State) -> Float[Tensor, " d_model"]:
    """The hidden state of the model's run at the wanted layer and position."""
    with running(model.id), capture(model, {wanted.layer: Places((0,), (wanted.position,))}) as states:
        next_logits(model, wanted.ids, wanted.masked)
    return states[wanted.layer][0]
