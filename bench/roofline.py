"""How many float32 operations a second this machine does on the model's own matrices.

A pass multiplies `rows` random vectors with the weight of every linear layer of every block and of the head, one
after the other, each weight its own (so that no cache is warmer than in a real run), and does nothing else: no
attention, no norm, no cache of keys. 2 × weights × rows operations a pass, over at least two seconds of passes after
one that warms up. Three routes lead through torch:

    mkl        torch.nn.functional.linear, as transformers runs it
    onednn     torch.ops.mkldnn._linear_pointwise on the weight as it is
    repacked   the same on a weight that oneDNN has laid out for itself (torch.ops.mkldnn._reorder_linear_weight)

The rate that fractions are taken of is the best of all routes at the best of 240, 480 and 1,024 rows. Each route is
compared with `linear` first; one that differs by more than 1e-5 of the largest output, or that this build of torch
does not have, is left out and named. Every product makes its own output, as torch does; for the head that
is memory fresh from the system at every pass, which takes about 5 % of the rate.

    python -m bench.roofline FOLDER [--seconds 2] [--rows 240 480 1024]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.workloads import MatrixParameters

ROWS = (240, 480, 1024)
TOLERANCE = 1e-5

Product = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a model's folder, as transformers reads it")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args()
    blocks, head = matrices(options.folder)
    with torch.inference_mode():
        print(json.dumps(measure(blocks, head, rows=options.rows, seconds=options.seconds)))


def matrices(folder: str) -> tuple[list[list[Tensor]], Tensor]:
    """The weights of each block's linear layers, and of the head."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    blocks = [
        [part.weight.detach() for part in block.modules() if isinstance(part, nn.Linear)]
        for block in model.model.layers
    ]
    return blocks, model.get_output_embeddings().weight.detach()


def parameters(blocks: list[list[Tensor]], head: Tensor) -> MatrixParameters:
    """How many numbers there are."""
    return MatrixParameters(tuple(sum(weight.numel() for weight in block) for block in blocks), head.numel())


def measure(blocks: list[list[Tensor]], head: Tensor, *, rows: Any, seconds: float) -> dict[str, Any]:
    """The rates of all routes, and the best."""
    counted = parameters(blocks, head)
    weights = [weight for block in blocks for weight in block] + [head]
    rates, errors, missing = [], {}, {}
    for route, make in ROUTES.items():
        try:
            errors[route] = difference(make, weights)
            if errors[route] > TOLERANCE:
                raise RuntimeError(f"differs from linear by {errors[route]:.1e}")
            for n_rows in rows:
                products = [make(weight, n_rows) for weight in weights]
                flops_per_s = 2 * counted.above(0) * n_rows / seconds_per_pass(products, weights, n_rows, seconds)
                rates.append({"route": route, "rows": n_rows, "gflops_per_s": flops_per_s / 1e9})
                del products
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            missing[route] = str(error).split("\n")[0]
    best = max(rates, key=lambda rate: rate["gflops_per_s"])
    return {
        "flops_per_s": 1e9 * best["gflops_per_s"],
        "best": best,
        "rates": rates,
        "largest_relative_difference": errors,
        "missing_routes": missing,
        "block_parameters": counted.blocks,
        "head_parameters": counted.head,
        "threads": torch.get_num_threads(),
    }


def _mkl(weight: Tensor, n_rows: int) -> Product:
    return lambda x: linear(x, weight)


def _onednn(weight: Tensor, n_rows: int) -> Product:
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, weight, None, "none", [], "")


def _repacked(weight: Tensor, n_rows: int) -> Product:
    return _onednn(torch.ops.mkldnn._reorder_linear_weight(weight, n_rows), n_rows)


ROUTES: dict[str, Callable[[Tensor, int], Product]] = {"mkl": _mkl, "onednn": _onednn, "repacked": _repacked}


def difference(make: Callable[[Tensor, int], Product], weights: list[Tensor]) -> float:
    """The largest difference from `linear` over all shapes, as a share of the largest output."""
    shapes = {tuple(weight.shape): weight for weight in weights}
    worst = 0.0
    for weight in shapes.values():
        x = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = linear(x, weight)
        worst = max(worst, float((make(weight, 64)(x) - expected).abs().max() / expected.abs().max()))
    return worst


def seconds_per_pass(products: list[Product], weights: list[Tensor], n_rows: int, seconds: float) -> float:
    """The mean time of passes that last `seconds` together, after one that is not timed."""
    inputs = {n: torch.randn(n_rows, n) for n in {weight.shape[1] for weight in weights}}
    work = [(product, inputs[weight.shape[1]]) for product, weight in zip(products, weights, strict=True)]

    def run() -> None:
        for product, x in work:
            product(x)

    run()
    start, n_passes = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        run()
        n_passes += 1
    return elapsed / n_passes


if __name__ == "__main__":
    main()
