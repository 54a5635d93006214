"""What a plan takes: passes, tokens, matrix products, bytes; with a model's speed, time; beside one cell at a time.

Counted from the plan, before anything runs: texts that end early take less.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from patchscopes.plan.work import (
    Group,
    GroupBytes,
    ModelShape,
    Wave,
    layer_of,
    own_tokens,
    states_of,
    suffix_of,
    text_bytes,
)
from patchscopes.spec import Cell


@dataclass(frozen=True, slots=True)
class Cost:
    """Passes, and tokens by what they are for; `block_tokens` are tokens × blocks that they run through.

    `head_tokens` go through the head, of them `chosen_tokens` only for the likeliest. `flops` counts matrix products;
    `peak_bytes` is what is needed beside the weights.
    """

    forward_passes: int = 0
    source_tokens: int = 0
    prompt_tokens: int = 0
    prefill_tokens: int = 0
    decoded_tokens: int = 0
    candidate_tokens: int = 0
    block_tokens: int = 0
    head_tokens: int = 0
    chosen_tokens: int = 0
    flops: int = 0
    peak_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Cost(**sums | {"peak_bytes": max(self.peak_bytes, other.peak_bytes)})


@dataclass(frozen=True, slots=True)
class Speed:
    """How long things take here, in seconds: a pass whatever it runs, a token in one block, a token in the head.

    `token_s` is of a head that gives the likeliest token, `distribution_s` of one that gives the whole distribution.
    `single_s` and `single_token_s` are of one text alone: a pass, and each of its tokens.
    """

    pass_s: float
    block_token_s: float
    token_s: float
    distribution_s: float
    single_s: float
    single_token_s: float


@dataclass(frozen=True, slots=True)
class Alone:
    """What the same cells take one at a time: a source pass for each, then its prompt, then token by token."""

    forward_passes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan's cost and the time it is expected to take here, beside the same one cell at a time."""

    n_cells: int
    cost: Cost
    seconds: float
    alone: Alone
    alone_seconds: float

    @classmethod
    def of(cls, n_cells: int, cost: Cost, alone: Alone, speed: Speed) -> "Explanation":
        """The times that they take at `speed`."""
        seconds = (
            cost.forward_passes * speed.pass_s
            + cost.block_tokens * speed.block_token_s
            + cost.chosen_tokens * speed.token_s
            + (cost.head_tokens - cost.chosen_tokens) * speed.distribution_s
        )
        alone_seconds = alone.forward_passes * speed.single_s + alone.tokens * speed.single_token_s
        return cls(n_cells, cost, seconds, alone, alone_seconds)

    def __str__(self) -> str:
        cost, alone = self.cost, self.alone
        tokens = cost.source_tokens + cost.prompt_tokens + cost.prefill_tokens
        tokens += cost.decoded_tokens + cost.candidate_tokens
        lines = (
            ("", "this plan", "one cell at a time"),
            ("distinct cells", f"{self.n_cells:,}", f"{self.n_cells:,}"),
            ("forward passes", f"{cost.forward_passes:,}", f"{alone.forward_passes:,}"),
            ("tokens", f"{tokens:,}", f"{alone.tokens:,}"),
            ("  of sources", f"{cost.source_tokens:,}", ""),
            ("  of inspection prompts", f"{cost.prompt_tokens + cost.prefill_tokens:,}", ""),
            ("  decoded, at most", f"{cost.decoded_tokens:,}", ""),
            ("  of candidates", f"{cost.candidate_tokens:,}", ""),
            ("matrix products", f"{cost.flops / 1e12:,.3f} TFLOP", ""),
            ("memory beside the weights", f"{cost.peak_bytes / 2**20:,.0f} MiB", ""),
            ("estimated time", duration(self.seconds), duration(self.alone_seconds)),
        )
        return "\n".join(f"{name:<28}{here:>18}{there:>22}".rstrip() for name, here, there in lines)


def duration(seconds: float) -> str:
    """Seconds as 4.5 s, 45 s, 3 min 20 s or 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def cost_of(cells: Sequence[Cell], waves: Sequence[Wave], shape: ModelShape, source_shape: ModelShape) -> Cost:
    """Count passes, tokens and matrix products."""
    total = Cost()
    for wave in waves:
        kept = _kept(wave, shape, source_shape)
        total += kept + Cost(peak_bytes=kept.peak_bytes + _pass_bytes(wave, shape, source_shape))
        for group in wave.groups:
            total += _group([cells[index] for index in group.cells], group, shape, kept.peak_bytes)
    return total


def _kept(wave: Wave, shape: ModelShape, source_shape: ModelShape) -> Cost:
    """Source passes and prompts, and the bytes that stay of them.

    Tokens of another source model count as blocks of the target's that take as long.
    """
    prompts = sum(len(prompt.ids) for prompt in wave.prompts)
    suffixes = sum((len(prompt.ids) - prompt.start) * len(prompt.layers) for prompt in wave.prompts)
    cost = Cost(
        forward_passes=len(wave.source_batches) + len({len(prompt.ids) for prompt in wave.prompts}),
        prompt_tokens=prompts,
        block_tokens=prompts * shape.n_layers,
        flops=round(2 * shape.block_parameters * shape.n_layers * prompts),
        peak_bytes=4 * shape.d_model * suffixes + 2 * shape.kv_bytes_per_token * prompts,
    )
    kept_bytes = cost.peak_bytes
    for batch in wave.source_batches:
        runs = source_shape if batch[0].side == "source" else shape
        n_tokens = max(len(p.ids) for p in batch) * len(batch)
        flops = 2 * runs.block_parameters * runs.n_layers * n_tokens
        kept_bytes += 4 * runs.d_model * sum(len(p.states) for p in batch)
        alike = round(n_tokens * runs.n_layers * runs.block_parameters / shape.block_parameters)
        cost += Cost(source_tokens=n_tokens, block_tokens=alike, flops=round(flops))
    return replace(cost, peak_bytes=kept_bytes)


def _pass_bytes(wave: Wave, shape: ModelShape, source_shape: ModelShape) -> int:
    """Return what the largest pass over sources or prompts makes, which is gone when rows start."""
    passes = [0]
    for batch in wave.source_batches:
        runs = source_shape if batch[0].side == "source" else shape
        passes.append(len(batch) * (text_bytes(runs, max(len(p.ids) for p in batch)) + runs.head_bytes))
    for length, count in Counter(len(prompt.ids) for prompt in wave.prompts).items():
        passes.append(min(count, max(1, wave.prompt_tokens // length)) * text_bytes(shape, length))
    return max(passes)


def _group(cells: Sequence[Cell], group: Group, shape: ModelShape, kept_bytes: int) -> Cost:
    prefill = decoded = answers = block_tokens = head_tokens = chosen = 0
    for cell in cells:
        suffix = suffix_of(cell, len(group.prefix))
        steps = cell.new_tokens - 1
        later = sum(len(ids) - 1 for ids in cell.candidates)
        prefill, decoded, answers = prefill + suffix, decoded + steps, answers + later
        block_tokens += (shape.n_layers - layer_of(cell)) * suffix + shape.n_layers * (steps + later)
        head_tokens += 1 + steps + later
        chosen += 1 + steps if cell.readout.kind == "text" else 0
    suffixes = Counter(suffix_of(cell, len(group.prefix)) for cell in cells)  # only those of one length start together
    starts = sum(-(-count // group.n_started) for count in suffixes.values())
    longest = max(own_tokens(cell) for cell in cells)
    size = GroupBytes.of(shape, cells, max(suffixes), len(group.prefix), group.capacity)
    return Cost(
        forward_passes=starts + (starts if answers else -(-len(cells) // group.n_rows)) * longest,
        prefill_tokens=prefill,
        decoded_tokens=decoded,
        candidate_tokens=answers,
        block_tokens=block_tokens,
        head_tokens=head_tokens,
        chosen_tokens=chosen,
        flops=round(2 * (block_tokens * shape.block_parameters + head_tokens * shape.head_parameters)),
        peak_bytes=kept_bytes + size.of_rows(group.n_rows),
    )


def alone_of(cells: Sequence[Cell]) -> Alone:
    """Passes and tokens where every cell (every candidate) runs its sources and its prompt by itself."""
    passes = tokens = 0
    for cell in cells:
        sources = {state.ids for vector in (cell.write.vectors if cell.write else ()) for state in states_of(vector)}
        answers = [len(ids) for ids in cell.candidates] or [0]
        for answer in answers:
            passes += len(sources) + cell.new_tokens
            tokens += sum(map(len, sources)) + len(cell.target_ids) + answer + cell.new_tokens - 1
    return Alone(passes, tokens)
