"""What does not belong together is refused before a kernel sees a pointer, with and without kernels, also under `-O`.

Wrong calls run in a process of their own: `python -O` leaves assertions out, and the tests' check of shapes in
signatures, which outside of tests nothing does, would come first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patchscopes
from patchscopes import kernels
from patchscopes.compute.attention import OwnKeys, Scoring, SharedKeys, attend
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native, native

GUARD = 4096  # floats on either side of a buffer, which nothing may change


@dataclass
class Arena:
    """Buffers in the midst of guarded memory."""

    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def buffer(self, *shape: int) -> Tensor:
        n = torch.Size(shape).numel()
        whole = torch.full((n + 2 * GUARD,), 7.0)
        inside = whole[GUARD : GUARD + n].view(shape)
        inside.zero_()
        self.made.append((whole, inside))
        return inside

    def untouched(self) -> bool:
        """Nothing outside of a buffer has changed, nor anything inside."""
        for whole, inside in self.made:
            if bool(inside.any()) or bool(torch.cat((whole[:GUARD], whole[-GUARD:])).ne(7.0).any()):
                return False
        return True


@dataclass(frozen=True)
class Pass:
    """A call of `attend` that is right: 2 rows, 3 columns, 4 heads on 2, 8 wide, 17 shared tokens, room for 6 own."""

    q: tuple[int, ...] = (2, 4, 3, 8)
    k: tuple[int, ...] = (2, 2, 3, 8)
    v: tuple[int, ...] = (2, 2, 3, 8)
    shared_keys: tuple[int, ...] = (2, 8, 32)
    shared_values: tuple[int, ...] = (2, 17, 8)
    own_keys: tuple[int, ...] = (2, 2, 6, 8)
    own_values: tuple[int, ...] = (2, 2, 6, 8)
    lengths: tuple[int, ...] = (0, 3)
    dtype: torch.dtype = torch.int64
    scoring: Scoring = field(default_factory=lambda: Scoring(1.0))

    def run(self, arena: Arena) -> None:
        new = (torch.ones(self.q), torch.ones(self.k), torch.ones(self.v))
        shared = SharedKeys(torch.ones(self.shared_keys), torch.ones(self.shared_values))
        lengths = torch.tensor(self.lengths, dtype=self.dtype)
        own = OwnKeys(arena.buffer(*self.own_keys), arena.buffer(*self.own_values), lengths)
        attend(new, shared, own, self.scoring)


RIGHT = Pass()
WRONG_PASSES = {
    "queries wider than keys": replace(RIGHT, q=(2, 4, 3, 16)),
    "queries narrower than keys": replace(RIGHT, q=(2, 4, 3, 4)),
    "keys wider than their buffer": replace(RIGHT, q=(2, 4, 3, 16), k=(2, 2, 3, 16)),
    "keys and values wider than their buffers": replace(RIGHT, q=(2, 4, 3, 16), k=(2, 2, 3, 16), v=(2, 2, 3, 16)),
    "values wider than their buffer": replace(RIGHT, v=(2, 2, 3, 80)),
    "values narrower than their buffer": replace(RIGHT, v=(2, 2, 3, 4)),
    "buffers of different widths": replace(RIGHT, own_values=(2, 2, 6, 4)),
    "buffers of different capacities": replace(RIGHT, own_values=(2, 2, 5, 8)),
    "shared keys of another width": replace(RIGHT, shared_keys=(2, 4, 32)),
    "shared values of another width": replace(RIGHT, shared_values=(2, 17, 4)),
    "fewer shared keys than values": replace(RIGHT, shared_keys=(2, 8, 16)),
    "shared keys not turned": replace(RIGHT, shared_keys=(2, 17, 8)),
    "fewer heads in the prefix": replace(RIGHT, shared_keys=(1, 8, 32), shared_values=(1, 17, 8)),
    "heads that do not divide": replace(RIGHT, q=(2, 3, 3, 8)),
    "fewer heads than keys have": replace(RIGHT, q=(2, 1, 3, 8)),
    "more key heads than buffers": replace(RIGHT, k=(2, 4, 3, 8), v=(2, 4, 3, 8)),
    "no key heads": Pass((2, 4, 3, 8), (2, 0, 3, 8), (2, 0, 3, 8), (0, 8, 32), (0, 17, 8), (2, 0, 6, 8), (2, 0, 6, 8)),
    "another number of heads in values": replace(RIGHT, v=(2, 4, 3, 8)),
    "more rows than buffers": replace(RIGHT, q=(3, 4, 3, 8), k=(3, 2, 3, 8), v=(3, 2, 3, 8), lengths=(0, 0, 0)),
    "fewer keys than queries": replace(RIGHT, k=(1, 2, 3, 8), v=(1, 2, 3, 8)),
    "fewer columns of keys": replace(RIGHT, k=(2, 2, 2, 8), v=(2, 2, 2, 8)),
    "more columns of values": replace(RIGHT, v=(2, 2, 4, 8)),
    "fewer lengths than rows": replace(RIGHT, lengths=(0,)),
    "more lengths than rows": replace(RIGHT, lengths=(0, 0, 0)),
    "a length beyond capacity": replace(RIGHT, lengths=(0, 4)),
    "a length far beyond capacity": replace(RIGHT, lengths=(2**62, 0)),
    "the greatest length": replace(RIGHT, lengths=(2**63 - 1, 0)),
    "a length below 0": replace(RIGHT, lengths=(-1, 0)),
    "the least length": replace(RIGHT, lengths=(0, -(2**63))),
    "lengths of 32 bits": replace(RIGHT, dtype=torch.int32),
    "lengths that are floats": replace(RIGHT, dtype=torch.float64),
    "a window below 0": replace(RIGHT, scoring=Scoring(1.0, window=-1)),
    "a soft cap below 0": replace(RIGHT, scoring=Scoring(1.0, softcap=-1.0)),
    "no room at all": replace(RIGHT, own_keys=(2, 2, 0, 8), own_values=(2, 2, 0, 8)),
    "three axes of queries": replace(RIGHT, q=(2, 4, 8)),
    "two axes of shared values": replace(RIGHT, shared_values=(17, 8)),
}  # fmt: skip


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def top_k(x: tuple[int, ...], values: tuple[int, ...], indices: tuple[int, ...]) -> kernels.Top:
    return kernels.top_k(ones(*x), 0, kernels.Top(ones(*values), torch.zeros(indices, dtype=torch.int64)))


WRONG_OPS: dict[str, Callable[[], object]] = {
    "a norm's weight too short": partial(kernels.rms_norm, ones(2, 16), ones(8), 1e-6),
    "a norm's weight too long": partial(kernels.rms_norm, ones(2, 8), ones(16), 1e-6),
    "a norm's weight of one": partial(kernels.rms_norm, ones(2, 8), ones(1), 1e-6),
    "a norm's weight of two axes": partial(kernels.rms_norm, ones(2, 8), ones(1, 8), 1e-6),
    "a norm of a scalar": partial(kernels.rms_norm, torch.tensor(1.0), ones(1), 1e-6),
    "up of fewer rows than gate": partial(kernels.gated, ones(4, 16), ones(1, 16), "silu"),
    "up narrower than gate": partial(kernels.gated, ones(4, 16), ones(4, 8), "gelu"),
    "up wider than gate": partial(kernels.gated, ones(4, 8), ones(4, 16), "silu"),
    "an activation that is none": partial(kernels.gated, ones(4, 8), ones(4, 8), "relu"),  # type: ignore[arg-type]
    "fewer angles than rows": partial(kernels.rotary, ones(5, 2, 8), ones(2, 8), ones(2, 8)),
    "more angles than rows": partial(kernels.rotary, ones(1, 2, 8), ones(2, 8), ones(2, 8)),
    "angles too narrow": partial(kernels.rotary, ones(5, 2, 8), ones(5, 4), ones(5, 4)),
    "angles too wide": partial(kernels.rotary, ones(5, 2, 8), ones(5, 16), ones(5, 16)),
    "sines unlike cosines": partial(kernels.rotary, ones(5, 2, 8), ones(5, 8), ones(1, 8)),
    "heads of odd width": partial(kernels.rotary, ones(5, 2, 7), ones(5, 7), ones(5, 7)),
    "rotary of two axes": partial(kernels.rotary, ones(5, 8), ones(5, 8), ones(5, 8)),
    "a top of other rows": partial(top_k, (4, 20), (2, 3), (2, 3)),
    "a top of 0": partial(top_k, (4, 20), (4, 0), (4, 0)),
    "a top with fewer indices": partial(top_k, (4, 20), (4, 3), (4, 2)),
    "a top with indices of other rows": partial(top_k, (4, 20), (4, 3), (1, 3)),
    "a top of nothing": partial(top_k, (4, 0), (4, 3), (4, 3)),
    "a top of three axes": partial(top_k, (4, 2, 20), (4, 3), (4, 3)),
    "sums of nothing": partial(kernels.softmax_sums, ones(4, 0)),
    "sums of one axis": partial(kernels.softmax_sums, ones(4)),
}


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "went through"


def main(way: str) -> None:
    """Make every wrong call; what each said, as JSON."""
    if way == "plain":
        ops.native = lambda: Native(None, "switched off")  # type: ignore[assignment]
    said = {name: outcome(call) for name, call in WRONG_OPS.items()}
    for name, wrong in WRONG_PASSES.items():
        arena = Arena()
        said[name] = outcome(partial(wrong.run, arena))
        if not arena.untouched():
            said[name] = "touched memory"
    sys.stdout.write(json.dumps(said))


@pytest.fixture(scope="module", params=["kernels", "plain"])
def said(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a process without assertions said to each wrong call."""
    paths = Path(patchscopes.__file__).parents[1], Path(__file__).parents[1], Path(__file__).parent
    code = f"import test_bounds; test_bounds.main({request.param!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    run = subprocess.run(
        [sys.executable, "-O", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("name", [*WRONG_OPS, *WRONG_PASSES])
def test_what_does_not_belong_together_is_refused_without_assertions(said: dict[str, str], name: str) -> None:
    assert said[name] not in ("went through", "touched memory")
    assert any(word in said[name] for word in ("needs", "have room for", "at least 0", "it has silu and gelu")), said[
        name
    ]


def test_the_call_that_they_differ_from_is_right() -> None:
    arena = Arena()
    RIGHT.run(arena)
    assert all(bool(inside.ne(0).any()) for _, inside in arena.made)
    assert all(bool(whole[:GUARD].eq(7).all() and whole[-GUARD:].eq(7).all()) for whole, _ in arena.made)


@pytest.mark.skipif(native().library is None, reason="no kernels here")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv_heads", 0), ("heads", 3), ("d", 0), ("d", 513), ("window", -1), ("prefix", -1), ("prefix_padded", 16),
        ("prefix_padded", 33), ("capacity", 5), ("capacity", -1), ("t", 4), ("t", -1), ("rows", -1), ("t", 2**63 - 1),
    ],
)  # fmt: skip
def test_the_kernel_itself_refuses_numbers_that_it_cannot_keep_to(name: str, value: int) -> None:
    """Behind the checks of shapes: every number that a loop relies on, before anything is written."""
    arena = Arena()
    own = arena.buffer(2, 2, 6, 8), arena.buffer(2, 2, 6, 8)
    q, k, out, lengths = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 3, 8), torch.zeros(2, 3, 4, 8), torch.tensor([0, 3])
    shared = SharedKeys.of(*torch.ones(2, 2, 17, 8))
    pointers: dict[str, Any] = {"q": q, "k": k, "v": k, "prefix_k": shared.keys, "prefix_v": shared.values}
    pointers |= {"own_k": own[0], "own_v": own[1], "out": out, "lengths": lengths}
    numbers = {"rows": 2, "t": 3, "heads": 4, "kv_heads": 2, "d": 8, "capacity": 6, "prefix": 17, "prefix_padded": 32}
    module: Any = sys.modules["patchscopes.kernels.native"]
    arguments = module.AttentionArguments(**{key: t.data_ptr() for key, t in pointers.items()}, **numbers)
    setattr(arguments, name, value)
    library: Any = native().library
    assert library.ps_attend(module.ctypes.byref(arguments)) == 1
    assert arena.untouched()
    assert not out.any()


class Elsewhere(Tensor):
    """A subclass, whose numbers may be anywhere."""


def test_kernels_take_nothing_but_plain_float32_on_the_cpu() -> None:
    x = torch.ones(2, 8)
    assert ops.runs_native(x, torch.nn.Parameter(x)) == (native().library is not None)
    for other in (x.double(), x.bfloat16(), x.to("meta"), x.as_subclass(Elsewhere), x.t()):
        assert not ops.runs_native(x, other)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_what_is_empty_stays_empty(shape: tuple[int, int]) -> None:
    x = torch.ones(shape)
    assert kernels.rms_norm(x, torch.ones(shape[1]), 1e-6).shape == shape
    assert kernels.gated(x.clone(), x, "silu").shape == shape
    lines = x[:, None]
    assert kernels.rotary(lines, x, x).shape == lines.shape
    if shape[1]:
        assert kernels.softmax_sums(x).shape == (0, 3)
        assert kernels.top_k(x, 0, kernels.Top.none(0, 2, x.device)).indices.shape == (0, 2)


def test_angles_and_tops_of_other_layouts_give_the_same() -> None:
    """The kernel has one step for cosines and sines, and none for what a top keeps."""
    generator = torch.Generator().manual_seed(0)
    x, wide = torch.randn(5, 3, 8, generator=generator), torch.randn(5, 24, generator=generator)
    cos, sin = wide[:, :8], torch.randn(5, 8, generator=generator)
    assert torch.allclose(kernels.rotary(x, cos, sin), kernels.rotary(x, cos.contiguous(), sin), atol=1e-6)
    logits = torch.randn(4, 70, generator=generator)
    for values, indices in (
        (torch.full((4, 6), -torch.inf)[:, ::2], torch.zeros(4, 3, dtype=torch.int64)),
        (torch.full((4, 6), -torch.inf)[:, :3], torch.zeros(4, 3, dtype=torch.int64)),
        (torch.full((1, 3), -torch.inf).expand(4, 3), torch.zeros(4, 3, dtype=torch.int64)),
        (torch.full((4, 3), -torch.inf), torch.zeros(4, 6, dtype=torch.int64)[:, :3]),
        (torch.full((4, 3), -torch.inf), torch.zeros(4, 3, dtype=torch.int32)),
        (torch.full((4, 3), -torch.inf, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.int64)),
    ):
        found = kernels.top_k(logits, 0, kernels.Top(values, indices))
        assert torch.equal(found.indices, logits.topk(3).indices)
        assert torch.equal(found.values.float(), logits.topk(3).values)
