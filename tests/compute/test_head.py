"""Logits read in chunks of the vocabulary are as read whole (rule 13)."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import families
from conftest import tiny_model
from patchscopes import kernels
from patchscopes.compute import Head, columns_at_once, head, linear
from patchscopes.forward import without_head
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native
from patchscopes.models import Inputs, Model, wrap_in_memory

IDS = torch.tensor([[17, 33, 60, 21, 45], [80, 41, 27, 50, 9], [5, 6, 7, 8, 9]])
# Softcap, a divisor, a multiplier, a bias, rows that no token has, a projection before the head, a tied head.
FAMILIES = ["llama", "gemma2", "granite", "cohere", "gptj", "qwen2", "opt-projected", "qwen3"]


def made(monkeypatch: pytest.MonkeyPatch, family: str, chunk: int) -> Head:
    monkeypatch.setattr(head, "CHUNK", chunk)
    return Head(tiny_model(family), repack=True)


def entering(model: Model) -> Tensor:
    """What enters the head after the last column."""
    with without_head(model) as taken:
        model.forward(Inputs(IDS), "last")
    return taken[0][:, -1]


@pytest.fixture(params=["kernels", "plain"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With kernels and without."""
    if request.param == "plain":
        monkeypatch.setattr(ops, "native", lambda: Native(None, "switched off"))
    elif kernels.native().library is None:
        pytest.skip("no kernels here")
    return str(request.param)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [10, 100, 4096])
def test_what_is_read_in_chunks_is_what_is_read_whole(
    monkeypatch: pytest.MonkeyPatch, kind: str, family: str, chunk: int
) -> None:
    model = tiny_model(family)
    assert model.d_vocab % 10
    one, x = made(monkeypatch, family, chunk), entering(model)
    logits = model.next_logits(IDS)
    exact = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(one.logits(x), logits, atol=1e-4)
    assert torch.equal(one.best(x).tokens, logits.argmax(-1))
    found = one.distribution(x, 12)
    top = exact.topk(12)
    assert torch.allclose(found.logprobs.double(), top.values, atol=1e-4)
    assert torch.equal(found.tokens[:, 0], top.indices[:, 0])
    assert torch.allclose(exact.gather(1, found.tokens), top.values, atol=1e-4)
    assert torch.allclose(found.entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-4)
    tokens = torch.tensor([[0, 9, 10, 11], [99, 100, model.d_vocab - 1, 0], [3, 3, 3, 3]])
    assert torch.allclose(one.logprobs(x, tokens).double(), exact.gather(1, tokens), atol=1e-4)


def test_a_distribution_of_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = tiny_model("llama")
    found = made(monkeypatch, "llama", 50).distribution(entering(model), model.d_vocab)
    assert torch.allclose(found.logprobs.exp().sum(-1), torch.ones(3), atol=1e-5)
    assert [sorted(row) for row in found.tokens.tolist()] == [list(range(model.d_vocab))] * 3


class Fixed(Head):
    """A head whose logits are given."""

    def __init__(self, logits: Tensor, chunk: int) -> None:
        self._model = tiny_model("llama")
        parts = [(start, logits[:, start : start + chunk].clone()) for start in range(0, logits.shape[1], chunk)]
        self._chunks = [(start, lambda _, part=part: part) for start, part in parts]


def logits_with(changes: dict[int, float], n: int = 90) -> Tensor:
    logits = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
    for at, value in changes.items():
        logits[1, at] = value
    return logits


def test_impossible_tokens_take_no_part(kind: str) -> None:
    """Also where they are all that a chunk has: the last is tokens 80 to 89."""
    logits = logits_with({3: -math.inf, 4: -math.inf, **dict.fromkeys(range(80, 90), -math.inf)})
    exact = torch.log_softmax(logits.double(), -1)
    one = Fixed(logits, 20)
    x = torch.zeros(2, 1)
    found = one.distribution(x, 3)
    assert torch.allclose(found.entropy.double(), -torch.special.xlogy(exact.exp(), exact.exp()).sum(-1), atol=1e-5)
    assert torch.allclose(found.logprobs.double(), exact.topk(3).values, atol=1e-5)
    tokens = torch.tensor([[3, 85, 5], [3, 85, 5]])
    assert torch.allclose(one.logprobs(x, tokens).double(), exact.gather(1, tokens), atol=1e-5)
    assert one.best(x).tokens.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [10, 4096])
def test_divergences_and_ranks_are_those_of_whole_distributions(
    monkeypatch: pytest.MonkeyPatch, kind: str, family: str, chunk: int
) -> None:
    one, x = made(monkeypatch, family, chunk), entering(tiny_model(family))
    others = [x, 3 * x, x.flip(0)]
    p, *qs = (torch.log_softmax(one.logits(y).double(), -1) for y in (x, *others))
    found = one.divergences(x, others)
    assert found.shape == (3, len(x))
    assert (found[0] == 0).all()
    for row, q in zip(found, qs, strict=True):
        assert torch.allclose(row.double(), (p.exp() * (p - q)).sum(-1), atol=1e-4)
    order = one.logits(x).argsort(-1, descending=True)
    for place in (0, 1, 7, order.shape[1] - 1):
        assert (one.ranks(x, order[:, place]) == place + 1).all()


@pytest.mark.parametrize("at", [0, 19, 20, 89])
def test_no_number_in_any_chunk_is_none_for_its_row_alone(kind: str, at: int) -> None:
    one, x = Fixed(logits_with({at: math.nan}), 20), torch.zeros(2, 1)
    assert one.best(x).logits.isfinite().tolist() == [True, False]
    assert one.distribution(x, 3).logprobs[:, 0].isfinite().tolist() == [True, False]
    assert one.logprobs(x, torch.tensor([[5], [5]])).isfinite().tolist() == [[True], [False]]


def test_infinity_is_no_number_either(kind: str) -> None:
    one, x = Fixed(logits_with({33: math.inf}), 20), torch.zeros(2, 1)
    assert one.best(x).logits.isfinite().tolist() == [True, False]
    assert one.distribution(x, 3).logprobs[:, 0].isfinite().tolist() == [True, False]


def test_of_equal_logits_the_first_token_is_taken_across_chunks(kind: str) -> None:
    logits = torch.zeros(1, 90)
    logits[0, [25, 45, 26]] = 1.0
    assert Fixed(logits, 20).best(torch.zeros(1, 1)).tokens.tolist() == [25]


def test_sums_are_exact_where_logits_are_large_and_far_apart(kind: str) -> None:
    logits = 40 * logits_with({}) + 300
    exact = torch.log_softmax(logits.double(), -1)
    found = Fixed(logits, 7).distribution(torch.zeros(2, 1), 5)
    assert torch.allclose(found.logprobs.double(), exact.topk(5).values, atol=1e-3)
    assert torch.allclose(found.entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-3)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_heads_own_input_is_taken_and_its_product_left_out(family: str) -> None:
    model = tiny_model(family)
    x = entering(model)
    assert x.shape == (3, model.unembed_width)
    assert torch.allclose(Head(model, repack=False).logits(x), model.next_logits(IDS), atol=1e-4)


def test_a_head_that_cannot_be_packed_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "available", lambda: False)
    model = tiny_model("gemma2")
    one, x = made(monkeypatch, "gemma2", 10), entering(model)
    assert torch.allclose(one.logits(x), model.next_logits(IDS), atol=1e-4)
    assert torch.equal(one.best(x).tokens, model.next_logits(IDS).argmax(-1))


def test_nothing_that_is_read_keeps_a_graph() -> None:
    """Weights as from_pretrained has them require gradients."""
    model = tiny_model("gemma2")
    weight = model.hf.get_output_embeddings().weight
    one, x = Head(model, repack=False), entering(model)
    one._chunks = [(0, model.hf.get_output_embeddings())]  # type: ignore[list-item]
    weight.requires_grad_(True)
    try:
        distribution = one.distribution(x, 3)
        read = (one.logits(x), one.best(x).logits, distribution.logprobs, distribution.entropy)
        assert not any(part.requires_grad for part in (*read, one.logprobs(x, torch.zeros(3, 1, dtype=torch.long))))
    finally:
        weight.requires_grad_(False)


def test_an_infinite_logit_is_finite_under_a_soft_cap_as_the_model_has_it() -> None:
    """The reference looks at logits after the cap; so must greedy decoding in chunks (rule 9)."""
    model = tiny_model("gemma2")
    read = Head(model, repack=False)
    logits = torch.tensor([[0.5, math.inf, 3.0], [0.5, math.nan, 3.0]])
    read._chunks = [(0, lambda _: logits)]
    best = read.best(torch.zeros(2, model.unembed_width))
    assert int(best.tokens[0]) == 1
    assert float(best.logits[0]) == pytest.approx(float(model.scaled_logits(logits)[0].max()))
    assert best.logits[1].isnan()


# ---------------------------------------------------------------------------------------------- what runs in chunks


def alone(family: str) -> Model:
    """A model of its own, whose head may be changed."""
    return wrap_in_memory(copy.deepcopy(families.build(family)), families.tiny_tokenizer())


def hooked(model: Model) -> None:
    model.hf.get_output_embeddings().register_forward_hook(lambda _, __, y: y + 1)


def pre_hooked(model: Model) -> None:
    model.hf.get_output_embeddings().register_forward_pre_hook(lambda _, args: (2 * args[0],))


def own_forward(model: Model) -> None:
    module = model.hf.get_output_embeddings()
    original = module.forward
    module.forward = lambda x: original(x).flip(-1)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def other_class(model: Model) -> None:
    module = model.hf.get_output_embeddings()
    module.__class__ = Doubled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [hooked, pre_hooked, own_forward, other_class])
def test_a_head_that_is_more_than_its_matrix_runs_itself(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Model], None], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(head, "CHUNK", 10)
    model = alone("llama")
    model.hf.to(dtype)
    assert columns_at_once(model) == 10
    x = entering(model)
    change(model)
    assert columns_at_once(model) == model.d_vocab, "and the plan counts them all"
    one = Head(model, repack=True)
    expected = model.hf.get_output_embeddings()(x).float()
    assert torch.allclose(one.logits(x), expected, rtol=1e-5, atol=1e-5)
    tokens = torch.tensor([[0, 9], [10, 99], [3, 3]])
    assert torch.equal(one.token_logits(x, tokens), expected.gather(1, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_chunks_in_half_precision_are_the_whole_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, kind: str, family: str, dtype: torch.dtype
) -> None:
    model = alone(family)
    model.hf.to(dtype)
    x, module = entering(model), model.hf.get_output_embeddings()
    whole = model.scaled_logits(module(x)).float()
    monkeypatch.setattr(head, "CHUNK", 50)
    one = Head(model, repack=True)
    assert torch.equal(one.logits(x), whole)
    assert torch.equal(one.best(x).tokens, whole.argmax(-1))
    exact = torch.log_softmax(whole.double(), -1)
    assert torch.allclose(one.distribution(x, 5).logprobs.double(), exact.topk(5).values, atol=1e-4)
    widths = [part.shape[1] for _, part in one._parts(x)]
    assert max(widths) == columns_at_once(model) == 50, "no more at once than the plan counts"


def test_chunks_off_float32_are_of_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 50)
    model = alone("llama")
    model.hf.to(torch.bfloat16)
    one, x, module = Head(model, repack=True), entering(model), model.hf.get_output_embeddings()
    before = one.logits(x)
    module.weight = nn.Parameter(2 * module.weight.detach(), requires_grad=False)
    assert torch.equal(one.logits(x), 2 * before)
