"""Logits and tokens → what a row shows: the next token's distribution, or text with the reason why it ended.

Log-probabilities and entropy are in nats, computed in float32. Greedy unless a temperature is given (rule 10).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from patchscopes.models import Model
from patchscopes.rng import philox
from patchscopes.spec import Cell, FinishReason, Result, TopToken


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Token ids as text, without special tokens and without any clean-up of spaces."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


NOT_FINITE = "the model's logits are not finite: its states are too large for this dtype; use float32 or bfloat16"


def choose(logits: Float[Tensor, " d_vocab"], cell: Cell, step: int) -> int | None:
    """The next token: the most likely one, or a draw at the cell's temperature; None where logits are not finite."""
    best = logits.max(dim=-1)
    if not math.isfinite(best.values):
        return None
    return draw(logits, cell, step) if cell.decoding.temperature > 0 else int(best.indices)


def draw(logits: Float[Tensor, " d_vocab"], cell: Cell, step: int) -> int:
    """A token drawn at the cell's temperature.

    It inverts the cumulative distribution at one uniform number from a counter-based stream keyed by the cell's seed
    and identity, so that it depends on nothing that runs beside it.
    """
    cumulative = torch.softmax(logits.double() / cell.decoding.temperature, dim=-1).cumsum(-1)
    uniform = float(philox("sample", cell.decoding.seed, cell.identity(), step).random())
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(index, logits.shape[-1] - 1)


class Writing:
    """The text that one cell is writing: takes tokens until it has ended (rule 11)."""

    def __init__(self, model: Model, cell: Cell) -> None:
        self._model, self._decoding = model, cell.decoding
        self.cell = cell
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.failed = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more tokens."""
        return self.failed or self.finish_reason is not None

    def add(self, token: int | None) -> bool:
        """Append `token` (None: there is none, and the cell has failed); True where the text has now ended."""
        if token is None:
            self.failed = True
            return True
        self.token_ids.append(token)
        if token in self._decoding.eos_ids:
            self.finish_reason = "eos"
        elif self._decoding.stop and self._stop_at() is not None:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._decoding.max_new_tokens:
            self.finish_reason = "length"
        return self.ended

    def result(self, index: int, gaps: Sequence[float] = ()) -> Result:
        """The finished text as a Result: without special tokens, and cut at the stop string."""
        if self.failed:
            return Result(index, None, None, None, failure=NOT_FINITE)
        # An EOS may be an ordinary token to the tokenizer; it is no part of the text all the same.
        shown = self.token_ids[:-1] if self.finish_reason == "eos" else self.token_ids
        text = decode(self._model.tokenizer, shown)
        end = self._stop_at() if self.finish_reason == "stop" else None
        return Result(index, text[:end], tuple(self.token_ids), self.finish_reason, gaps=tuple(gaps))

    def _stop_at(self) -> int | None:
        text = decode(self._model.tokenizer, self.token_ids)
        found = [text.find(stop) for stop in self._decoding.stop if stop in text]
        return min(found, default=None)


def next_token_results(
    model: Model, logits: Float[Tensor, "row d_vocab"], cells: Sequence[Cell], indices: Sequence[int]
) -> list[Result]:
    """The `top_k` tokens with log-probabilities, and the entropy, of each row's next-token distribution."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    entropies = -torch.special.xlogy(logprobs.exp(), logprobs.exp()).sum(-1)
    values, ids = logprobs.topk(max(cell.readout.top_k for cell in cells), dim=-1)
    return tops_as_results(model, NextTokens(values, ids, entropies), cells, indices)


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Of each row the k most likely next tokens, with log-probabilities, and the entropy; in nats."""

    logprobs: Float[Tensor, "row k"]
    tokens: Int[Tensor, "row k"]
    entropies: Float[Tensor, " row"]

    def of(self, rows: Sequence[int]) -> "NextTokens":
        """Those of some rows."""
        at = list(rows)
        return NextTokens(self.logprobs[at], self.tokens[at], self.entropies[at])


def tops_as_results(model: Model, found: NextTokens, cells: Sequence[Cell], indices: Sequence[int]) -> list[Result]:
    """A Result per row, with as many tokens as its cell asks for."""
    values, ids, entropies = found.logprobs.tolist(), found.tokens.tolist(), found.entropies.tolist()
    texts = {token: token_text(model, token) for token in {token for row in ids for token in row}}
    results = []
    for row, (cell, index) in enumerate(zip(cells, indices, strict=True)):
        k, tokens, logprobs = cell.readout.top_k, ids[row], values[row]
        if not math.isfinite(logprobs[0]):
            results.append(Result(index, None, None, None, failure=NOT_FINITE))
            continue
        top = tuple(map(TopToken, map(texts.__getitem__, tokens[:k]), tokens[:k], logprobs[:k]))
        results.append(Result(index, top[0].token, (tokens[0],), "length", top, entropies[row]))
    return results


@dataclass(frozen=True, slots=True)
class Compared:
    """A patched next-token distribution beside the source run's own (rule 14), in nats."""

    source_token: int
    source_logprob: float
    surprisal_under_source: float
    surprisal_under_patched: float


def with_comparison(model: Model, result: Result, compared: Compared) -> Result:
    """The result with what the source's own run says; as it is where it failed."""
    if result.failure is not None:
        return result
    top = TopToken(token_text(model, compared.source_token), compared.source_token, compared.source_logprob)
    return replace(
        result,
        source_top=top,
        surprisal_under_source=compared.surprisal_under_source,
        surprisal_under_patched=compared.surprisal_under_patched,
    )


def candidates_result(logprobs: Sequence[float], index: int) -> Result:
    """A Result with the log-probability of each candidate."""
    if any(math.isnan(logprob) for logprob in logprobs):
        return Result(index, None, None, None, failure=NOT_FINITE)
    return Result(index, None, None, None, logprobs=tuple(logprobs))


def token_text(model: Model, token_id: int) -> str:
    """A single token as text; as its vocabulary entry where it is not text by itself (a part of a character)."""
    if token_id >= len(model.tokenizer):
        return f"<no token {token_id}>"  # a row of the head beyond the vocabulary, which some models have
    text = str(model.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    return text if text and "\ufffd" not in text else str(model.tokenizer.convert_ids_to_tokens(token_id))


def top2_gap(logits: Float[Tensor, " d_vocab"]) -> float:
    """The difference between the two highest logits."""
    first, second = logits.topk(2).values.tolist()
    return math.inf if math.isinf(second) else first - second
