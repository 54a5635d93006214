"""Attention over a shared prefix and a row's own tokens, by kernel and by plain operations, against the textbook."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from patchscopes.compute import attention
from patchscopes.compute.attention import OwnKeys, Scoring, SharedKeys, attend, kernel_runs
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native


@dataclass(frozen=True)
class Case:
    """Sizes of one pass: own tokens per row before it, columns in it."""

    prefix: int = 17
    lengths: tuple[int, ...] = (0, 3, 20)
    columns: int = 1
    group: int = 1
    kv_heads: int = 2
    d_head: int = 8
    scoring: Scoring = field(default_factory=lambda: Scoring(0.3))
    spare: int = 2  # tokens that the longest row has room for behind this pass
    d_value: int = 0  # 0: as wide as keys

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    @property
    def width(self) -> int:
        return self.d_value or self.d_head


CASES = [
    *(Case(prefix=prefix) for prefix in (0, 1, 15, 16, 17, 700)),
    *(Case(d_head=d_head, columns=2) for d_head in (4, 8, 24, 64, 72, 256)),
    *(Case(group=group) for group in range(1, 10)),
    Case(columns=5),
    Case(prefix=0, lengths=(0, 0), columns=7),
    Case(prefix=510, lengths=(0, 1, 2), columns=3),
    Case(prefix=512, lengths=(5, 600), columns=2),
    Case(prefix=1, lengths=(1100,), columns=1, group=3),
    *(
        Case(prefix, (0, 3, 20), columns, 2, scoring=Scoring(0.3, window=window))
        for prefix, columns, window in itertools.product((0, 5, 40, 700), (1, 3), (1, 4, 16, 23, 1000))
    ),
    *(Case(prefix=prefix, columns=2, scoring=Scoring(0.5, softcap=2.0)) for prefix in (0, 17, 600)),
    Case(prefix=33, columns=2, group=9, d_head=24, scoring=Scoring(0.5, softcap=5.0, window=11)),
    # Full to the last float, which a sanitizer watches: one row, odd widths, what a window leaves at its edges.
    *(
        Case(prefix, lengths, columns, group, kv_heads=1, d_head=d_head, spare=0)
        for prefix, lengths, columns, group, d_head in (
            (0, (0,), 1, 1, 2), (1, (0,), 1, 3, 17), (15, (5,), 1, 9, 63), (17, (0, 4), 2, 3, 65),
            (513, (3,), 2, 5, 33), (0, (511,), 1, 3, 64), (0, (512,), 2, 2, 31),
            (496, (15, 0), 1, 4, 16), (32, (7,), 3, 7, 511),
        )
    ),
    *(
        Case(prefix, (0, 6), 2, 3, kv_heads=1, d_head=24, scoring=Scoring(0.3, window=window), spare=0)
        for prefix, window in itertools.product((0, 16, 31, 512), (1, 2, 8, 15, 16, 17, 513))
    ),
]  # fmt: skip
WIDTHS = [
    Case(d_value=4, columns=2),
    Case(d_value=24, prefix=0, group=3),
    Case(d_value=9, scoring=Scoring(0.3, window=5)),
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def textbook(case: Case, whole: list[tuple[Tensor, Tensor]], q: Tensor) -> Tensor:
    """Row by row, head by head, in float64, from each row's whole keys and values (token, kv_head, d_head)."""
    out = torch.zeros(q.shape[0], case.columns, case.heads, case.width, dtype=torch.float64)
    for row, (keys, values) in enumerate(whole):
        for head, column in itertools.product(range(case.heads), range(case.columns)):
            end = len(keys) - case.columns + column + 1
            start = max(0, end - case.scoring.window) if case.scoring.window else 0
            k, v = (part[start:end, head // case.group].double() for part in (keys, values))
            scores = k @ q[row, head, column].double() * case.scoring.scale
            if case.scoring.softcap:
                scores = torch.tanh(scores / case.scoring.softcap) * case.scoring.softcap
            out[row, column, head] = torch.softmax(scores, 0) @ v
    return out.float()


def run(case: Case, *, behind: float) -> tuple[Tensor, Tensor, OwnKeys, list[tuple[Tensor, Tensor]]]:
    """(found, expected, own, what own should hold); `behind` fills what no row has written yet."""
    rows, capacity = len(case.lengths), max(case.lengths) + case.columns + case.spare
    widths = case.d_head, case.width
    prefix_k, prefix_v = (
        drawn(case.kv_heads, case.prefix, d, seed=seed) for seed, d in zip((1, 2), widths, strict=True)
    )
    own_k, own_v = (torch.full((rows + 1, case.kv_heads, capacity, d), behind) for d in widths)
    # As a model gives them: views of (row, column, head, d_head).
    q = drawn(rows, case.columns, case.heads, case.d_head, seed=3).transpose(1, 2)
    k, v = (
        drawn(rows, case.columns, case.kv_heads, d, seed=seed).transpose(1, 2)
        for seed, d in zip((4, 5), widths, strict=True)
    )
    whole = []
    for row, length in enumerate(case.lengths):
        own_k[1 + row, :, :length] = drawn(case.kv_heads, length, case.d_head, seed=10 + row)
        own_v[1 + row, :, :length] = drawn(case.kv_heads, length, case.width, seed=50 + row)
        parts = ((prefix_k, own_k[1 + row, :, :length], k[row]), (prefix_v, own_v[1 + row, :, :length], v[row]))
        whole.append(tuple(torch.cat(part, 1).transpose(0, 1).clone() for part in parts))
    own = OwnKeys(own_k[1:], own_v[1:], torch.tensor(case.lengths))  # rows in the midst of a buffer
    found = attend((q, k, v), SharedKeys.of(prefix_k, prefix_v), own, case.scoring)
    return found, textbook(case, whole, q), own, whole


def check_kept(case: Case, own: OwnKeys, whole: list[tuple[Tensor, Tensor]], behind: float) -> None:
    """The new keys and values stand behind each row's own, and nothing else has changed."""
    for row, length in enumerate(case.lengths):
        for kept, expected in zip((own.keys, own.values), whole[row], strict=True):
            end = length + case.columns
            assert torch.equal(kept[row, :, :end].transpose(0, 1), expected[case.prefix :])
            rest = kept[row, :, end:]
            assert torch.equal(rest, torch.full_like(rest, behind)) or rest.isnan().all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_is_the_textbook_and_looks_at_no_one_elses_memory(case: Case) -> None:
    if ops.native().library is None:
        pytest.skip("no kernels here")
    found, expected, own, whole = run(case, behind=float("nan"))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_kept(case, own, whole, float("nan"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_operations_are_the_textbook(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(ops, "native", lambda: Native(None, "switched off"))
    found, expected, own, whole = run(case, behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_kept(case, own, whole, 0.0)


def test_large_scores_do_not_overflow() -> None:
    case = Case(prefix=600, columns=2, scoring=Scoring(30.0))
    found, expected, *_ = run(case, behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_no_prefix_is_a_prefix_of_no_tokens() -> None:
    k = drawn(2, 3, 1, 8, seed=0)
    shared = SharedKeys.none(k, k)
    assert (shared.n_tokens, shared.keys.shape, shared.values.shape) == (0, (3, 8, 0), (3, 0, 8))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17])
def test_shared_keys_are_turned_and_padded_to_whole_vectors(n: int) -> None:
    keys = drawn(3, n, 8, seed=0)
    shared = SharedKeys.of(keys, keys)
    assert shared.n_tokens == n
    assert shared.keys.shape[-1] % attention.PADDED == 0
    assert torch.equal(shared.keys[..., :n], keys.transpose(1, 2))
    assert shared.keys[..., n:].eq(0).all()


def test_heads_beyond_what_the_kernel_holds_and_other_dtypes_run_plain() -> None:
    def runs(d_head: int, **options: Any) -> bool:
        keys = torch.zeros(1, d_head, **options)
        return kernel_runs(keys, keys)

    assert not runs(attention.MAX_D_HEAD + 8)
    assert not runs(8, dtype=torch.bfloat16)
    assert not runs(8, device="meta")
    assert runs(attention.MAX_D_HEAD) == (ops.native().library is not None)
    found, expected, *_ = run(Case(d_head=attention.MAX_D_HEAD + 8), behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    found, expected, *_ = run(Case(d_head=attention.MAX_D_HEAD, group=4), behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", WIDTHS, ids=str)
def test_values_of_another_width_than_keys_run_plain(case: Case) -> None:
    """The kernel has one width for both: told to add wide values, it wrote behind its buffers."""
    assert not kernel_runs(torch.zeros(2, case.d_head), torch.zeros(2, case.width))
    found, expected, own, whole = run(case, behind=0.0)
    assert found.shape[-1] == case.width
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_kept(case, own, whole, 0.0)


@pytest.mark.parametrize("way", ["kernels", "plain"])
@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (2, 0)])
def test_no_rows_and_no_columns_are_no_output(
    monkeypatch: pytest.MonkeyPatch, way: str, rows: int, columns: int
) -> None:
    if way == "plain":
        monkeypatch.setattr(ops, "native", lambda: Native(None, "switched off"))
    q, k = torch.zeros(rows, 4, columns, 8), torch.zeros(rows, 2, columns, 8)
    own = OwnKeys(*torch.zeros(2, rows, 2, 3, 8), torch.zeros(rows, dtype=torch.long))
    found = attend((q, k, k), SharedKeys.none(k, k), own, Scoring(1.0))
    assert found.shape == (rows, columns, 4, 8)


def test_layouts_that_the_kernel_does_not_take_are_copied() -> None:
    """A prefix that is a view, or padded otherwise; a query whose last axis has strides; lengths with gaps."""
    case = Case(prefix=17, lengths=(3, 5), columns=2, group=2)
    q, k, v = (drawn(2, n, 2, 16, seed=n)[..., ::2] for n in (4, 2, 2))
    prefix = SharedKeys.of(*drawn(2, 2, 17, 8, seed=9))
    wide = SharedKeys(prefix.keys[..., :17], drawn(2, 17, 16, seed=3)[..., :8])
    straight = SharedKeys(prefix.keys, wide.values.contiguous())
    buffers = [drawn(2, 2, 9, 8, seed=5) for _ in range(2)]
    lengths = torch.tensor([3, 0, 5, 0])[::2]
    found = attend((q, k, v), wide, OwnKeys(*(b.clone() for b in buffers), lengths), case.scoring)
    own = OwnKeys(*(b.clone() for b in buffers), lengths.clone())
    assert torch.equal(found, attend((q.clone(), k.clone(), v.clone()), straight, own, case.scoring))
