"""Attention over a shared prefix and a row's own tokens, by kernel and by plain operations, against the textbook."""

import itertools
from dataclasses import dataclass, field

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

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads


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
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def textbook(case: Case, whole: list[tuple[Tensor, Tensor]], q: Tensor) -> Tensor:
    """Row by row, head by head, in float64, from each row's whole keys and values (token, kv_head, d_head)."""
    out = torch.zeros(q.shape[0], case.columns, case.heads, case.d_head, dtype=torch.float64)
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
    rows, capacity = len(case.lengths), max(case.lengths) + case.columns + 2
    prefix_k, prefix_v = (drawn(case.kv_heads, case.prefix, case.d_head, seed=seed) for seed in (1, 2))
    own_k, own_v = (torch.full((rows + 1, case.kv_heads, capacity, case.d_head), behind) for _ in range(2))
    # As a model gives them: views of (row, column, head, d_head).
    q = drawn(rows, case.columns, case.heads, case.d_head, seed=3).transpose(1, 2)
    k, v = (drawn(rows, case.columns, case.kv_heads, case.d_head, seed=seed).transpose(1, 2) for seed in (4, 5))
    whole = []
    for row, length in enumerate(case.lengths):
        own_k[1 + row, :, :length] = drawn(case.kv_heads, length, case.d_head, seed=10 + row)
        own_v[1 + row, :, :length] = drawn(case.kv_heads, length, case.d_head, seed=50 + row)
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
    assert not kernel_runs(torch.zeros(1, attention.MAX_D_HEAD + 8))
    assert not kernel_runs(torch.zeros(1, 8, dtype=torch.bfloat16))
    assert kernel_runs(torch.zeros(1, attention.MAX_D_HEAD)) == (ops.native().library is not None)
    found, expected, *_ = run(Case(d_head=attention.MAX_D_HEAD + 8), behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    found, expected, *_ = run(Case(d_head=attention.MAX_D_HEAD, group=4), behind=0.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
