"""How far rounding parts a model's own ways of running one text: what our way is measured by off float32 (rule 9).

In bfloat16 and float16 two passes that mean the same give different logits, and how different is a property of the
weights. So the model itself is asked, by plain prose run through its own forward:

    alone         a text a pass, by the attention that it has: all others are compared with this
    eager, sdpa   the texts in one pass, by another attention implementation that its class has
    cached        the texts side by side, by its own cache, one token at a time
    padded        texts of unequal length in one pass, padded on the left
    last digit    as `padded`, with each number that enters block 1 moved to its neighbour in this dtype

The last digit is no way of running a model, but the least that any other order of sums does. It tells a fault from
rounding, and it stands in where all of a model's ways agree to the last bit.

Axes: text, token (from PREFIX on), k (the likeliest tokens), d_vocab.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations, cycle, islice
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.compute import compute_of, plain_compute
from patchscopes.errors import SelfCheckError
from patchscopes.forward import Span, forward
from patchscopes.hooks import Entry, LayerWrite, Places, capture, patch
from patchscopes.kv import Rows, own_cache, recorded, recording_cache, shared_or_copied, sharing
from patchscopes.layout import Layout
from patchscopes.models import Inputs, Model, calm
from patchscopes.prompts.tokens import tokenize
from patchscopes.rng import philox
from patchscopes.spec import Ids

N_TEXTS, N_TOKENS, TOP = 8, 32, 50
PREFIX = 4  # tokens that all texts begin with, as rows of the engine do; they are not compared
SUFFIX = 8  # tokens with which our rows start; as many as rows, lest what is by column pass for what is by row
ANSWER = 16  # tokens that they run behind those, at once
MEDIAN, HIGH = 0.5, 0.99
# Our way may differ from the model's own by so many times what its own ways differ by among themselves.
ADMITTED = 1.5
# A way that differs by so many times what the last digit does is a fault and no rounding. Good ones: at most 1.1 times.
APART = 5.0
# Ways that differ by less than this share of what the last digit does are one way, and tell nothing of rounding.
ONE_WAY = 0.1
# How often more texts are looked at where our way is beyond what is admitted: a router that flips is rare and far.
MORE_LOOKS = 3

CACHED, PADDED, DIGIT = "cached", "padded", "last digit"
ATTENTIONS = ("eager", "sdpa")
PROSE = (
    "The harbour lay quiet that morning, and only two boats had gone out before the fog came down over the water, so "
    "nobody on the pier could say with certainty who was still at sea.",
    "In the year that the bridge was finished, a hundred thousand people crossed it on foot, and the mayor promised "
    "that no toll would ever be asked of those who lived on either bank.",
    "Most plants turn their leaves toward the light, because the cells on the shaded side of the stem grow longer than "
    "the others, which bends the whole shoot a little every hour.",
    "She opened the letter slowly, read the first line twice, folded it again, and told her brother that their uncle "
    "had sold the farm in Oregon and would be home for Christmas.",
    "A compiler reads the source of a program, checks that names and types agree, and writes instructions that a "
    "processor can run; an interpreter does much the same, one line at a time.",
    "Rome was the capital of an empire that reached from Scotland to Syria, and its roads, laws and language outlived "
    "it by more than a thousand years in nearly every country of Europe.",
    "To make bread you need flour, water, salt and yeast; knead the dough for ten minutes, let it rise in a warm place "
    "until it has doubled, and bake it until the crust is brown.",
    "The committee met on Tuesday to discuss the budget for 2019, but three of its nine members were absent, and the "
    "vote on the new hospital was put off until the first week of March.",
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Two quantiles of |Δ log-probability| in nats, over the likeliest tokens at every place compared."""

    median: float
    high: float

    @classmethod
    def of(cls, differences: Tensor) -> "Spread":
        """Return the spread of some differences, infinite where one is not finite."""
        if not bool(differences.isfinite().all()):
            return cls(float("inf"), float("inf"))
        at = torch.tensor([MEDIAN, HIGH], dtype=torch.float32, device=differences.device)
        median, high = differences.abs().flatten().float().quantile(at)
        return cls(float(median), float(high))

    @classmethod
    def largest(cls, spreads: "Sequence[Spread]") -> "Spread":
        """Return the largest of each quantile."""
        return cls(max((s.median for s in spreads), default=0.0), max((s.high for s in spreads), default=0.0))

    def over(self, other: "Spread") -> float:
        """Return how many times as large as `other` it is, in the worse quantile."""
        return max(_ratio(self.median, other.median), _ratio(self.high, other.high))


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("inf") if a else 0.0


StandsIn = Literal["nothing", "high", "all"]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What was measured: each of the model's own ways against `alone`, and ours.

    `theirs` is the largest spread between any two of its own ways. What the last digit does stands in for `all` of it
    where those are one way to the last digit, and for its `high` quantile where, after more looks, ours is beyond that
    alone. `apart` names the ways that differ by more than rounding, which count for nothing: other attention
    implementations that compute something else.
    """

    routes: Mapping[str, Spread]
    digit: Spread
    theirs: Spread
    ours: Spread
    apart: tuple[str, ...]
    stands_in: StandsIn
    n_tokens: int

    @property
    def faults(self) -> tuple[str, ...]:
        """Return the ways that must agree and do not: padded, cached, or beside others."""
        return tuple(name for name in self.apart if name not in ATTENTIONS)

    @property
    def ratio(self) -> float:
        """Return our spread over the largest of theirs; at most ADMITTED is admitted."""
        return self.ours.over(self.theirs)


def measure(model: Model) -> Yardstick:
    """Run prose by every way that the model has, and by ours: 8 texts of 32 tokens, 32 texts where in doubt.

    Costs 8 passes of 36 tokens, 5 of up to 288, and 43 of few. Raises SelfCheckError where the model's own logits are
    not finite.
    """
    looks = [_look(model, 0)]
    found = _yardstick(looks)
    if found.ratio > ADMITTED and not found.faults:
        looks.extend(_look(model, number) for number in range(1, 1 + MORE_LOOKS))
        found = _yardstick(looks)
    return found


# ---------------------------------------------------------------------------------------------- from passes to spreads

# Per way, the log-probabilities of the tokens that are likeliest alone: of each text from its token PREFIX on.
Look = Mapping[str, Sequence[Float[Tensor, "token k"]]]
ALONE, OURS, OURS_PADDED = "alone", "ours", "ours, padded"


def _yardstick(looks: "Sequence[Look]") -> Yardstick:
    names = [name for name in looks[0] if name not in (ALONE, DIGIT, OURS, OURS_PADDED)]
    routes = {name: _between(looks, ALONE, name) for name in names}
    digit = _between(looks, PADDED, DIGIT)
    apart = tuple(name for name in names if not routes[name].median <= APART * digit.median)
    admitted = [ALONE, *(name for name in names if name not in apart)]
    theirs = Spread.largest([_between(looks, a, b) for a, b in combinations(admitted, 2)])
    ours = Spread.largest([_between(looks, ALONE, name) for name in (OURS, OURS_PADDED)])
    stands_in: StandsIn = "nothing"
    if theirs.median < ONE_WAY * digit.median:
        theirs, stands_in = digit, "all"
    elif len(looks) > 1 and ours.median <= ADMITTED * theirs.median and ours.high > ADMITTED * theirs.high:
        # Far and rare: a router that flips, of which some 1% of tokens have seen too few to compare.
        theirs, stands_in = Spread(theirs.median, max(theirs.high, digit.high)), "high"
    n_tokens = sum(len(text) for look in looks for text in look[OURS])
    return Yardstick(routes, digit, theirs, ours, apart, stands_in, n_tokens)


def _between(looks: "Sequence[Look]", a: str, b: str) -> Spread:
    """Return the spread of way `b` about way `a`, over the tokens that both have."""
    pairs = [pair for look in looks for pair in zip(look[a], look[b], strict=True)]
    return Spread.of(torch.cat([(x[: len(y)] - y[: len(x)]).flatten() for x, y in pairs]))


@calm()
def _look(model: Model, number: int) -> "Look":
    """Return the log-probabilities that each way gives the texts of look `number`."""
    texts = prose(model, number)
    ids = torch.tensor(texts, dtype=torch.long, device=model.device)
    alone = []
    for text, row in enumerate(ids):
        logits = model.forward(Inputs(row[None]), "all")[0].float()
        _check_finite(model, logits, PROSE[text])
        alone.append(logits[PREFIX:].log_softmax(-1).topk(min(TOP, logits.shape[-1]), dim=-1))
    tops = [top.indices for top in alone]
    found = {ALONE: [top.values for top in alone]}
    for name in other_attentions(model):
        # What a class says that it has may still refuse what this model asks of it (softcaps, sinks).
        with suppress(NotImplementedError, ValueError), attention_by(model, name):
            found[name] = _read(model.forward(Inputs(ids), "all"), tops)
    found[CACHED] = _read(_cached(model, ids), tops)
    everywhere = _everywhere(*ids.shape)
    with capture(model, {0: everywhere}) as states:
        found[PADDED] = _padded(model, texts, tops)
    with patch(model, [LayerWrite(0, everywhere, _neighbours(states[0]))]):
        found[DIGIT] = _padded(model, texts, tops)
    with compute_of(model).installed():
        found[OURS_PADDED] = _padded(model, texts, tops)
    found[OURS] = shared_or_copied(model, partial(_ours, model, ids, torch.stack(tops)))
    return found


def prose(model: Model, number: int) -> list[Ids]:
    """Look `number`'s texts as tokens, all of one length and one beginning, as the model's tokenizer has them."""
    words = [word for sentence in PROSE for word in sentence.split(" ")]
    texts, start = [], 0
    for sentence in PROSE:
        first = start + 3 * number
        text = " ".join([*words[first:], *words[:first]])
        texts.append(tuple(id for id in tokenize(model, text).ids if id < model.d_vocab) or (0,))
        start += len(sentence.split(" "))
    length = min(PREFIX + N_TOKENS, model.max_text)
    n_special = 1 if len({ids[0] for ids in texts}) == 1 else 0  # a BOS, which stands in the beginning already
    joined = [texts[0], *(texts[0][:PREFIX] + ids[n_special:] for ids in texts[1:])]
    return [tuple(islice(cycle(ids), length)) for ids in joined]


def _check_finite(model: Model, logits: Float[Tensor, "token d_vocab"], text: str) -> None:
    lost = int((~logits.isfinite().all(-1)).sum())
    if not lost:
        return
    largest, dtype = torch.finfo(model.dtype).max, model.dtype_name
    weights = next((name for name, weight in model.hf.named_parameters() if not weight.isfinite().all()), None)
    if weights is not None:
        advice = f"Its {weights} holds numbers that are not finite: mend the weights, or use a wider dtype."
    elif largest <= torch.finfo(torch.float16).max:
        advice = f"Its activations grow beyond {largest:,.0f}, the largest number in {dtype}. Use bfloat16 or float32."
    else:
        advice = f"Its weights are finite, and {dtype} reaches as far as float32: see whether it runs in float32."
    raise SelfCheckError(
        f"{model.id} does not run in {dtype}: its own logits are not finite at {lost} of {len(logits)} tokens of a "
        f'plain text ("{text[:40]}…"). {advice}'
    )


def _read(
    logits: Float[Tensor, "text column d_vocab"], tops: Sequence[Int[Tensor, "token k"]]
) -> list[Float[Tensor, "token k"]]:
    """Return the log-probabilities of each text's `tops`, from token PREFIX on; one text at a time, for memory."""
    return [_logprobs(text[PREFIX:].float(), top) for text, top in zip(logits, tops, strict=True)]


def _logprobs(logits: Float[Tensor, "token d_vocab"], top: Int[Tensor, "token k"]) -> Float[Tensor, "token k"]:
    return logits.gather(-1, top.to(logits.device)) - logits.logsumexp(-1, keepdim=True)


def _everywhere(rows: int, columns: int) -> Places:
    lines = [(row, column) for row in range(rows) for column in range(columns)]
    return Places(tuple(row for row, _ in lines), tuple(column for _, column in lines))


# ------------------------------------------------------------------------------------------------- the model's own ways


def other_attentions(model: Model) -> list[str]:
    """Return the attention implementations of the model's class, without the one that it runs by."""
    hf: Any = model.hf
    if not hf._can_set_attn_implementation():
        return []
    has = {"eager": True, "sdpa": bool(hf._supports_sdpa)}
    own = model.hf.config.get_text_config(decoder=True)._attn_implementation
    return [name for name in ATTENTIONS if has[name] and name != own]


@contextmanager
def attention_by(model: Model, name: str) -> Iterator[None]:
    """While open, the private modules that this thread runs attend by the implementation `name`."""
    with plain_compute(model).installed(), model.running() as tree, tree.attending_by(name):
        yield


def _cached(model: Model, ids: Int[Tensor, "text column"]) -> Float[Tensor, "text column d_vocab"]:
    """Run the prefix in one pass, then a token a pass behind the cache that the model makes for itself."""
    cache = own_cache(model)
    parts = [ids[:, :PREFIX], *torch.split(ids[:, PREFIX:], 1, dim=1)]
    return torch.cat([model.forward(Inputs(part, cache=cache), "all") for part in parts], dim=1)


def _padded(model: Model, texts: Sequence[Ids], tops: Sequence[Tensor]) -> list[Float[Tensor, "token k"]]:
    """Text k without its last k tokens, so that each row has padding of its own; as the model runs now."""
    cut = [text[: max(PREFIX + 1, len(text) - k)] for k, text in enumerate(texts)]
    layout, device = Layout(cut), model.device
    inputs = Inputs(layout.ids(device), layout.mask(device), layout.position_ids(device))
    logits = model.forward(inputs, "all")
    found = []
    for row, (text, top) in enumerate(zip(cut, tops, strict=True)):
        here = logits[row, layout.column(row, PREFIX) :].float()
        found.append(_logprobs(here, top[: len(text) - PREFIX]))
    return found


def _neighbours(states: Float[Tensor, "place d_model"]) -> Float[Tensor, "place d_model"]:
    """Each number moved to the next one in its dtype, up or down as drawn."""
    drawn = torch.from_numpy(philox("last-digit").random(states.shape, dtype="float32")).to(states.device)
    step = 0.75 * torch.finfo(states.dtype).eps  # of any number, between half and one and a half of its last digit
    return (states.float() * (1 + torch.where(drawn < 0.5, step, -step))).to(states.dtype)


# -------------------------------------------------------------------------------------------------------------- our way


def _ours(
    model: Model, ids: Int[Tensor, "text column"], tops: Int[Tensor, "text token k"]
) -> list[Float[Tensor, "token k"]]:
    """Run the texts as the engine does: a prefix shared, rows from layers 0, half way and the last but one on, steps.

    Behind the tokens that they start with rows run several at once, as given answers do, and then one at a time.
    """
    compute, cache, n = compute_of(model), recording_cache(model), len(ids)
    ends = [min(PREFIX + SUFFIX, ids.shape[1]), min(PREFIX + SUFFIX + ANSWER, ids.shape[1])]
    layers = sorted([0, model.n_layers // 2, model.n_layers - 1] * n)[::3]
    suffix = Places(*(tuple(axis.tolist()) for axis in _grid(n, range(PREFIX, ends[0]))))
    with compute.installed(), capture(model, dict.fromkeys(layers, suffix)) as states:
        model.forward(Inputs(ids, cache=cache), "last")
    prompts = [recorded(cache, row) for row in range(n)]
    shared = prompts[0].shared(PREFIX) if sharing(model) == "shared" else []
    rows, n_own = Rows(model, n_rows=n, capacity=ids.shape[1], shared=shared), 0 if shared else PREFIX
    rows.add([n_own] * n)
    for row, prompt in enumerate(prompts):
        rows.put([row], 0, prompt, slice(PREFIX - n_own, PREFIX))
    parted = {layer: at.view(n, ends[0] - PREFIX, -1).to(model.device) for layer, at in states.items()}
    entry = Entry(layers, torch.stack([parted[layer][row] for row, layer in enumerate(layers)]))
    inputs = [forward(compute, rows, Span(0, n), ids[:, PREFIX : ends[0]], entry=entry, columns="all")]
    for row, (prompt, layer) in enumerate(zip(prompts, layers, strict=True)):
        rows.put([row], n_own, prompt, slice(PREFIX, ends[0]), layers=[layer])
    if ends[1] > ends[0]:
        inputs.append(forward(compute, rows, Span(0, n), ids[:, ends[0] : ends[1]], columns="all"))
    inputs.extend(
        forward(compute, rows, Span(0, n), ids[:, column : column + 1]) for column in range(ends[1], ids.shape[1])
    )
    x = torch.cat(inputs, dim=1)
    found = compute.head.logprobs(x.flatten(0, 1), tops.flatten(0, 1).to(x.device))
    return list(found.view(tops.shape))


def _grid(rows: int, columns: range) -> tuple[Tensor, ...]:
    """Return the row and the column of each place, row by row."""
    axes = (torch.tensor(axis, dtype=torch.long, device="cpu") for axis in (range(rows), columns))
    return tuple(axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
