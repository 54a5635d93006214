"""Each kernel against plain PyTorch, over sizes that fill no vector."""

import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from patchscopes import kernels
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native, native

LIBRARY = native()
pytestmark = pytest.mark.skipif(LIBRARY.library is None, reason=f"no kernels here: {LIBRARY.reason}")

T = TypeVar("T")
SIZES = (1, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130, 576)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], T]) -> tuple[T, T]:
    """What the kernel gives, and what PyTorch's own operations give."""
    fast = run()
    with monkeypatch.context() as patched:
        patched.setattr(ops, "native", lambda: Native(None, "switched off"))
        return fast, run()


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_rms_norm(d: int, size: float) -> None:
    x, weight = size * drawn(3, 2, d), drawn(d, seed=1)
    expected = (x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()).float()
    assert torch.allclose(kernels.rms_norm(x, weight, 1e-6), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_takes_what_is_not_contiguous_or_not_float32() -> None:
    x, weight = drawn(5, 3, 17).transpose(0, 1), drawn(17, seed=1)
    assert torch.allclose(kernels.rms_norm(x, weight, 1e-6), kernels.rms_norm(x.contiguous(), weight, 1e-6), atol=1e-6)
    half = kernels.rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), kernels.rms_norm(x, weight, 1e-6), atol=0.1)


@pytest.mark.parametrize("n", [*SIZES, 4095, 4096, 4097, 9001])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated(n: int, activation: ops.Activation) -> None:
    gate, up = 4 * drawn(2, n), drawn(2, n, seed=1)
    gate[0, : n // 3] *= 30  # far into both tails
    act = (
        torch.nn.functional.silu if activation == "silu" else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    )
    expected = (act(gate.double()) * up.double()).float()
    assert torch.allclose(kernels.gated(gate.clone(), up, activation), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_of_no_number_is_none_and_of_infinity_as_pytorch_has_it(activation: ops.Activation) -> None:
    gate = torch.tensor([[math.nan, 200.0, -200.0, 0.0] + [1.0] * 20])
    found = kernels.gated(gate.clone(), torch.ones_like(gate), activation)[0]
    assert found[0].isnan()
    assert found[1:4].tolist() == pytest.approx([200, 0, 0], abs=1e-6)


@pytest.mark.parametrize("d", [2, 6, 8, 16, 24, 30, 64, 256])
@pytest.mark.parametrize("one_angle", [False, True])
def test_rotary(monkeypatch: pytest.MonkeyPatch, d: int, one_angle: bool) -> None:
    x = drawn(5, 3, d + 4)[..., :d].contiguous()
    cos, sin = drawn(2, 1 if one_angle else 5, d, seed=1)
    fast, slow = both(monkeypatch, lambda: kernels.rotary(x, cos, sin))
    turned = torch.cat((-x[..., d // 2 :], x[..., : d // 2]), -1)
    expected = x * cos[:, None] + turned * sin[:, None]
    assert torch.allclose(fast, expected, atol=1e-6)
    assert torch.allclose(slow, expected, atol=1e-6)


def test_rotary_of_rows_in_a_wider_matrix() -> None:
    """Queries are a part of a joint projection's rows."""
    wide = drawn(5, 7, 16)
    cos, sin = drawn(2, 5, 16, seed=1)
    assert torch.equal(kernels.rotary(wide[:, 2:5], cos, sin), kernels.rotary(wide[:, 2:5].clone(), cos, sin))


def chunked(x: Tensor, k: int, cuts: list[int]) -> kernels.Top:
    top = kernels.Top.none(x.shape[0], k, x.device)
    for start, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        top = kernels.top_k(x[:, start:end], start, top)
    return top


@pytest.mark.parametrize("n", [3, 17, 64, 65, 200, 317])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k(monkeypatch: pytest.MonkeyPatch, n: int, k: int) -> None:
    x = drawn(4, n)
    expected = x.topk(k)
    for cuts in ([], [1], [n // 2, n // 2 + 1], [n - 1]):
        for top in both(monkeypatch, lambda cuts=cuts: chunked(x, k, cuts)):
            assert torch.equal(top.values, expected.values)
            assert torch.equal(top.indices, expected.indices)


def test_top_k_of_fewer_than_k_fills_up_as_chunks_come(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(2, 12)
    for top in both(monkeypatch, lambda: chunked(x, 10, [3, 5])):
        assert torch.equal(top.indices, x.topk(10).indices)
    for top in both(monkeypatch, lambda: chunked(x, 14, [3])):
        assert torch.equal(top.values[:, :12], x.topk(12).values)
        assert top.values[:, 12:].eq(-math.inf).all()


@pytest.mark.parametrize("cuts", [[], [40], [5, 70]])
def test_of_equal_values_the_first_is_taken(monkeypatch: pytest.MonkeyPatch, cuts: list[int]) -> None:
    x = torch.zeros(1, 100)
    x[0, [9, 41, 80]] = 1.0
    for top in both(monkeypatch, lambda: chunked(x, 1, cuts)):
        assert top.indices.tolist() == [[9]]
    assert chunked(x, 5, cuts).indices.tolist() == [[9, 41, 80, 0, 1]]


@pytest.mark.parametrize("at", [0, 3, 63, 64, 69])
@pytest.mark.parametrize("cuts", [[], [64], [2, 65]])
def test_a_row_with_a_nan_has_none_but_nans_and_its_neighbours_do_not(
    monkeypatch: pytest.MonkeyPatch, at: int, cuts: list[int]
) -> None:
    x = drawn(3, 70)
    x[1, at] = math.nan
    for top in both(monkeypatch, lambda: chunked(x, 2, cuts)):
        assert top.values[1, 0].isnan()
        assert torch.equal(top.values[[0, 2]], x[[0, 2]].topk(2).values)


def test_infinities_are_values_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(2, 70)
    x[0, 66], x[1] = math.inf, -math.inf
    for top in both(monkeypatch, lambda: chunked(x, 1, [30])):
        assert top.values[0].tolist() == [math.inf]
        assert top.values[1].tolist() == [-math.inf]
        assert top.indices[0].tolist() == [66]


@pytest.mark.parametrize("n", [1, 15, 17, 64, 317, 4096, 4097, 9001])
@pytest.mark.parametrize("offset", [0.0, 500.0, -500.0])
def test_softmax_sums(monkeypatch: pytest.MonkeyPatch, n: int, offset: float) -> None:
    x = 5 * drawn(3, n) + offset
    x[1, n // 2] = -math.inf
    exact = x.double()
    below = exact - exact.amax(-1, keepdim=True)
    weights = below.exp()
    weighted = torch.where(weights > 0, below * weights, 0.0)
    expected = torch.stack((exact.amax(-1), weights.sum(-1), weighted.sum(-1)), -1).float()
    keep = torch.tensor([True, n > 1, True])
    for sums in both(monkeypatch, lambda: kernels.softmax_sums(x)):
        assert torch.allclose(sums[keep], expected[keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [3, 70])
def test_softmax_sums_of_nothing_but_impossible_tokens_are_of_nothing(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """A chunk of the vocabulary may be so where the whole is not."""
    for sums in both(monkeypatch, lambda: kernels.softmax_sums(torch.full((1, n), -math.inf))):
        assert sums[0].tolist() == pytest.approx([-math.inf, 0, 0], abs=1e-30)


def test_softmax_sums_of_far_apart_and_of_strided_values(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.full((2, 100), -300.0)
    x[:, 7] = 50.0
    for sums in both(monkeypatch, lambda: kernels.softmax_sums(x)):
        assert sums[0].tolist() == pytest.approx([50, 1, 0], abs=1e-6)
    wide = drawn(3, 64)
    assert torch.equal(kernels.softmax_sums(wide[:, 5:40]), kernels.softmax_sums(wide[:, 5:40].clone()))


def test_softmax_sums_of_no_number_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for at in (3, 69):
        x = drawn(2, 70)
        x[1, at] = math.nan
        for sums in both(monkeypatch, lambda x=x: kernels.softmax_sums(x)):
            assert sums[1, 1].isnan(), at
            assert sums[0].isfinite().all()
