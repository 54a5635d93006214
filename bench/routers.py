"""How often rounding flips a router, and whether that is all that refuses a mixture of experts off float32 (rule 9).

    python -m bench.routers [--dtype bfloat16] [--draws 50]

Draws tiny random Mixtrals and Qwen3-MoEs, counts per draw the tokens whose experts differ between two of the model's
own ways (one text a pass; all texts in one pass by eager attention; its own cache, one token a pass), on plain
Transformers hooks, and asks the self-check. Its last line is one JSON object.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from tests import families
from torch import Tensor

from patchscopes.models import Model, wrap_in_memory
from patchscopes.selfcheck import check_model
from patchscopes.yardstick import N_TEXTS, N_TOKENS, PREFIX, attention_by, prose

MIXTURES = ("mixtral", "qwen3-moe")


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of weights: is it refused, by which claims, and in how many of its tokens do its own routers flip.

    `looked_again`: more texts were needed; `by_digit`: and then what the last digit does, for the 0.99 quantile.
    """

    family: str
    seed: int
    failed: tuple[str, ...]
    flipped_tokens: int
    n_tokens: int
    ratio: float
    looked_again: bool
    by_digit: bool


def drawn(family: str, seed: int, dtype: torch.dtype) -> Draw:
    """One draw, checked as `load` checks it."""
    model = wrap_in_memory(copy.deepcopy(families.build(family, seed=seed)).to(dtype), families.tiny_tokenizer())
    report = check_model(model, thorough=False)
    failed = tuple(finding.claim for finding in report.findings if not finding.passed)
    flipped = flips(model)
    assert report.yardstick is not None
    found = report.yardstick
    looked_again = found.n_tokens > N_TEXTS * N_TOKENS
    return Draw(
        family,
        seed,
        failed,
        int(flipped.sum()),
        flipped.numel(),
        found.ratio,
        looked_again,
        found.stands_in == "high",
    )


@torch.no_grad()
def flips(model: Model) -> Tensor:
    """Per text and token, whether any router chose other experts in one of the model's own ways than in another."""
    ids = torch.tensor(prose(model, 0))
    hf: Any = model.hf
    ways = []
    with chosen(hf) as found:
        for row in ids:
            hf(input_ids=row[None], use_cache=False)
        ways.append(_by_token(found, ids.shape))
        with attention_by(model, "eager"):
            hf(input_ids=ids, use_cache=False)
        ways.append(_by_token(found, ids.shape))
        output = hf(input_ids=ids[:, :PREFIX], use_cache=True)
        steps = [_by_token(found, ids[:, :PREFIX].shape)]
        for column in range(PREFIX, ids.shape[1]):
            output = hf(input_ids=ids[:, column : column + 1], cache=output.cache, use_cache=True)
            steps.append(_by_token(found, (len(ids), 1)))
        ways.append(torch.cat(steps, dim=1))
    first = ways[0]
    return torch.stack([(way != first).any(-1).any(-1) for way in ways[1:]]).any(0)


@contextmanager
def chosen(hf: Any) -> Iterator[dict[str, list[Tensor]]]:
    """While open, the experts that each router chooses, sorted, per token and in the order of passes."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: found.setdefault(name, []).append(output[2].sort(-1).values)
        )
        for name, module in hf.named_modules()
        if type(module).__name__.endswith("TopKRouter")
    ]
    assert handles
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _by_token(found: dict[str, list[Tensor]], shape: Any) -> Tensor:
    """What was chosen since last asked: (text, token, router, expert)."""
    by_router = [torch.cat(parts).reshape(*shape, -1) for _, parts in sorted(found.items())]
    found.clear()
    return torch.stack(by_router, dim=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--draws", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    totals = {}
    for family in MIXTURES:
        draws = [drawn(family, seed, getattr(torch, options.dtype)) for seed in range(options.draws)]
        refused = [draw for draw in draws if draw.failed]
        for draw in refused:
            print(json.dumps(asdict(draw)))
        flipped = [draw for draw in draws if draw.flipped_tokens]
        totals[family] = {
            "draws": len(draws),
            "refused": len(refused),
            "refused_without_a_flip": sum(not draw.flipped_tokens for draw in refused),
            "looked_again": sum(draw.looked_again for draw in draws),
            "by_digit": sum(draw.by_digit for draw in draws),
            "with_flips": len(flipped),
            "flipped_tokens": sum(draw.flipped_tokens for draw in draws),
            "tokens": sum(draw.n_tokens for draw in draws),
            "largest_ratio": round(max(draw.ratio for draw in draws), 2),
        }
    print(
        json.dumps(
            {"dtype": options.dtype, "torch": torch.__version__, "transformers": transformers.__version__, **totals}
        )
    )


if __name__ == "__main__":
    main()
