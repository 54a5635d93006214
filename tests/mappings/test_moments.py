"""Moments beside the states themselves: planted maps, any chunks, huge dimensions, and R² worked out directly."""

import numpy as np
import pytest
import torch
from torch import Tensor

from patchscopes.errors import MappingError
from patchscopes.mappings import Mapping, Moments

N, D_SOURCE, D_TARGET = 400, 12, 9
PAIR = (3, 5)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(x: Tensor, y: Tensor, *, at_once: int = N) -> Moments:
    moments = Moments([PAIR])
    for start in range(0, len(x), at_once):
        part = slice(start, start + at_once)
        moments.add({3: x[part].float()}, {5: y[part].float()})
    return moments


def affine(moments: Moments, ridge: float = 0.0) -> Mapping:
    return moments.affine(PAIR, moments.solver(3), ridge)


def r2_of(mapping: Mapping, x: Tensor, y: Tensor) -> tuple[float, float]:
    error = (y - mapping(x.float()).double()).square().sum(0)
    around = (y - y.mean(0)).square().sum(0)
    return float(1 - error.sum() / around.sum()), float((1 - error / around).median())


def test_a_planted_affine_map_is_found() -> None:
    x, weight, bias = drawn(N, D_SOURCE) + 3, drawn(D_SOURCE, D_TARGET, seed=1), drawn(D_TARGET, seed=2)
    moments = seen(x, x @ weight + bias, at_once=50)
    mapping = affine(moments)
    assert torch.allclose(mapping.weight.double(), weight, atol=1e-5)
    assert torch.allclose(mapping.bias.double(), bias, atol=1e-5)
    quality = moments.errors(PAIR, mapping).quality()
    assert quality.n_tokens == N
    assert quality.r2 == pytest.approx(1, abs=1e-10)
    assert quality.r2_median == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("d_source", "d_target"), [(9, 9), (12, 9), (9, 12)])
def test_a_planted_rotation_is_found(d_source: int, d_target: int) -> None:
    wide = max(d_source, d_target)
    rotation = torch.linalg.qr(drawn(wide, wide, seed=1)).Q[:d_source, :d_target]
    x = drawn(N, d_source) @ torch.diag(torch.linspace(1, 3, d_source, dtype=torch.float64)) + 5
    if d_source > d_target:  # then W's columns are orthonormal; the target holds all of x that lies along them
        x = x @ rotation @ rotation.T + 5
    mapping = seen(x, x @ rotation + 7).orthogonal(PAIR)
    assert torch.allclose(mapping(x.float()).double(), x @ rotation + 7, atol=1e-4)
    weight = mapping.weight.double()
    small = weight.T @ weight if d_source >= d_target else weight @ weight.T
    assert torch.allclose(small, torch.eye(min(d_source, d_target), dtype=torch.float64), atol=1e-6)


def test_chunks_do_not_show() -> None:
    x, y = drawn(N, D_SOURCE) * 3 + 100, drawn(N, D_TARGET, seed=1)
    whole = affine(seen(x, y))
    for at_once in (1, 7, 399):
        mapping = affine(seen(x, y, at_once=at_once))
        assert torch.allclose(mapping.weight, whole.weight, atol=1e-7)
        assert torch.allclose(mapping.bias, whole.bias, atol=1e-5)
    both = Moments([PAIR])
    both.absorb(seen(x[:100], y[:100]))
    both.absorb(Moments([PAIR]))
    both.absorb(seen(x[100:], y[100:]))
    assert both.n == N
    assert torch.allclose(affine(both).weight, whole.weight, atol=1e-7)


def test_huge_dimensions_do_not_swallow_small_ones() -> None:
    """As in Gemma 3: a few dimensions in the tens of thousands, far from 0; the others around 1."""
    x, noise = drawn(2000, D_SOURCE), drawn(2000, D_TARGET, seed=3)
    x[:, :2] = x[:, :2] * 3e3 + 4e4
    weight = drawn(D_SOURCE, D_TARGET, seed=1)
    weight[:2] *= 1e-4
    y = x @ weight + 0.01 * noise
    y[:, 0] = x[:, 0] * 2
    mapping = affine(seen(x, y, at_once=64))
    x_rounded = x.float().double()
    centred, y_centred = x_rounded - x_rounded.mean(0), y.float().double() - y.float().double().mean(0)
    expected = torch.linalg.lstsq(centred, y_centred).solution
    assert torch.allclose(mapping.weight[2:].double(), expected[2:], atol=1e-5)
    assert torch.allclose(mapping.weight[:2].double(), expected[:2], atol=1e-9, rtol=1e-5)


def test_quality_is_that_of_a_direct_computation() -> None:
    x, y = drawn(N, D_SOURCE), drawn(N, D_TARGET, seed=1)
    y[:, :4] += 3 * x[:, :4]
    mapping = affine(seen(x[:200], y[:200]))
    quality = seen(x[200:], y[200:]).errors(PAIR, mapping).quality()
    r2, median = r2_of(mapping, x[200:], y[200:])
    assert (quality.r2, quality.r2_median) == (pytest.approx(r2, abs=1e-6), pytest.approx(median, abs=1e-6))


def test_ridge_is_that_of_standardised_inputs() -> None:
    x, y = drawn(N, D_SOURCE) * torch.linspace(0.1, 50, D_SOURCE, dtype=torch.float64), drawn(N, D_TARGET, seed=1)
    mapping = affine(seen(x, y), ridge=0.3)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    expected = torch.linalg.solve(z.T @ z / N + 0.3 * torch.eye(D_SOURCE), z.T @ (y - y.mean(0)) / N)
    assert torch.allclose(mapping.weight.double(), expected / x.std(0, correction=0)[:, None], atol=1e-6)


def test_dimensions_that_never_vary_or_repeat_others_take_no_weight_of_their_own() -> None:
    x = drawn(N, 4)
    x = torch.cat([x, torch.full((N, 1), 7.0), x[:, :1]], dim=1)
    weight = drawn(6, D_TARGET, seed=1)
    mapping = affine(seen(x, x @ weight))
    assert torch.allclose(mapping(x.float()).double(), x @ weight, atol=1e-4)
    assert mapping.weight[4].abs().max() == 0
    assert torch.allclose(mapping.weight[0], mapping.weight[5], atol=1e-5), "the smallest weights that do"


def test_a_target_that_never_varies_has_no_share() -> None:
    x = drawn(N, D_SOURCE)
    moments = seen(x, torch.full((N, D_TARGET), 2.0))
    quality = moments.errors(PAIR, affine(moments)).quality()
    assert (quality.r2, quality.r2_median) == (None, None)


def test_states_that_are_not_finite_are_refused() -> None:
    x = drawn(4, D_SOURCE)
    x[2, 1] = np.inf
    with pytest.raises(MappingError, match=r"states at layer 3 are not finite.*load the model in float32"):
        seen(x, drawn(4, D_TARGET))
