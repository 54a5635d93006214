"""Repacked linear layers, and which modules are taken."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from patchscopes.compute import linear

pytestmark = pytest.mark.skipif(not linear.available(), reason="this PyTorch has no oneDNN")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("repack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d_in", "d_out"), [(1, 1), (7, 33), (64, 5), (96, 64)])
def test_a_packed_matrix_multiplies_as_before(d_in: int, d_out: int, bias: bool, repack: bool) -> None:
    weight, offset = drawn(d_out, d_in), drawn(d_out, seed=1) if bias else None
    function = linear.pack(weight, offset, repack=repack)
    for shape in ((1, d_in), (3, 1, d_in), (2, 5, d_in), (700, d_in)):
        x = drawn(*shape, seed=2)
        assert torch.allclose(function(x), nn.functional.linear(x, weight, offset), rtol=1e-4, atol=1e-4)


def test_a_packed_matrix_takes_rows_that_are_not_contiguous() -> None:
    weight = drawn(33, 24)
    function = linear.pack(weight, None, repack=True)
    x = drawn(3, 5, 48)[..., ::2]
    assert torch.allclose(function(x), x @ weight.t(), atol=1e-4)
    x = drawn(5, 3, 24).transpose(0, 1)
    assert torch.allclose(function(x), x @ weight.t(), atol=1e-4)


class Doubled(nn.Linear):
    """A Linear that is more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def conv(d_in: int, d_out: int) -> Conv1D:
    """Conv1D's weight is (in, out)."""
    module = Conv1D(d_out, d_in)
    module.weight.data = drawn(d_in, d_out)
    module.bias.data = drawn(d_out, seed=1)
    return module


def test_linear_and_conv1d_are_taken_and_nothing_else() -> None:
    plain, without, transposed = nn.Linear(24, 40), nn.Linear(40, 24, bias=False), conv(24, 40)
    half, wrapped = nn.Linear(24, 40).bfloat16(), Doubled(24, 40)
    others = (half, wrapped, nn.LayerNorm(24), nn.Embedding(5, 24), nn.Conv1d(24, 40, 1))
    with torch.no_grad():
        found = linear.linear_functions((plain, without, transposed, *others), repack=True)
        assert set(found) == {plain, without, transposed}
        for module, d_in in ((plain, 24), (without, 40), (transposed, 24)):
            x = drawn(2, 3, d_in, seed=5)
            assert torch.allclose(found[module](x), module(x), rtol=1e-4, atol=1e-4)


def test_a_linear_whose_own_forward_does_more_is_left_alone() -> None:
    """As adapters and quantisers do: an instance's own forward."""
    patched = nn.Linear(24, 40)
    original = patched.forward
    patched.forward = lambda x: original(x) + 1  # type: ignore[method-assign]
    with torch.no_grad():
        assert linear.linear_functions([patched], repack=True) == {}


def test_packing_keeps_no_gradient_and_no_hold_on_the_module() -> None:
    module = nn.Linear(24, 40)
    function = linear.pack(module.weight, module.bias, repack=True)
    assert not function(drawn(2, 24)).requires_grad
    before = function(drawn(2, 24))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(function(drawn(2, 24)), before)


def test_only_plain_float32_matrices_on_the_cpu_can_be_packed() -> None:
    assert linear.takes(nn.Linear(4, 4).weight)
    assert not linear.takes(torch.zeros(4, 4, dtype=torch.float64))
    assert not linear.takes(torch.zeros(4, 4, device="meta"))


def test_weights_are_repacked_where_half_of_what_is_free_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr(linear.psutil, "virtual_memory", Memory)
    assert [linear.room_to_repack(n) for n in (0, 500, 501)] == [True, True, False]
