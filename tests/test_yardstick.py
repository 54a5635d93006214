"""Off float32: what a model's own ways differ by is measured, and ours is held to it (rule 9)."""

import copy
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench.routers import MIXTURES, drawn
from torch import Tensor
from transformers.models.llama import modeling_llama

import families
from patchscopes import errors, yardstick
from patchscopes.models import Model, wrap_in_memory
from patchscopes.selfcheck import check_model, require
from patchscopes.yardstick import ADMITTED, PREFIX, Spread, attention_by, measure, other_attentions, prose

HALF = [torch.bfloat16, torch.float16]


def half(family: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Model:
    return wrap_in_memory(copy.deepcopy(families.build(family)).to(dtype), families.tiny_tokenizer())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_loads_in_bfloat16(family: str) -> None:
    report = check_model(half(family), thorough=False)
    require(report)
    assert report.yardstick is not None
    assert report.yardstick.n_tokens >= 8 * 32
    assert report.yardstick.ratio <= ADMITTED
    assert {finding.tolerance for finding in report.findings} == {ADMITTED, 0.25}
    same = {finding.claim: finding.deviation for finding in report.findings if finding.claim != "batch"}
    assert same == dict.fromkeys(("self-write", "causal", "lens", "inert"), 0.0), "passes of one shape round alike"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "granite", "falcon", "mixtral"])
def test_float16_loads_where_activations_fit(family: str) -> None:
    require(check_model(half(family, torch.float16), thorough=False))


def test_float32_is_measured_by_nothing_but_its_bar() -> None:
    report = check_model(half(dtype=torch.float32), thorough=False)
    assert report.yardstick is None
    assert {(finding.tolerance, finding.unit) for finding in report.findings} == {(1e-3, "")}


def test_the_ways_are_the_models_own_and_part_alike() -> None:
    found = measure(half())
    assert set(found.routes) == {"eager", "cached", "padded"}
    assert found.apart == ()
    assert found.stands_in == "nothing"
    assert found.theirs.median >= max(spread.median for spread in found.routes.values()) > 0
    assert 0.1 < found.theirs.median / found.digit.median < 2
    assert 0.3 < found.ratio < ADMITTED


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_ways_that_are_one_to_the_last_digit_are_measured_by_that_digit(family: str, dtype: torch.dtype) -> None:
    """Gemma 2 has but one attention and rounds alike in every pass: any other order of sums would be refused."""
    found = measure(half(family, dtype))
    assert found.stands_in == "all"
    assert found.theirs == found.digit
    assert found.digit.median > 10 * max(spread.median for spread in found.routes.values())
    assert found.ratio <= ADMITTED


def test_an_attention_that_computes_something_else_is_left_out_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.eager_attention_forward

    def sharper(*args: Any, scaling: float, **options: Any) -> Any:
        return plain(*args, scaling=2 * scaling, **options)

    good = measure(half())
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharper)
    found = measure(half())
    assert found.apart == ("eager",)
    assert found.routes["eager"].median > 5 * found.digit.median
    assert found.faults == ()
    assert found.theirs.median < good.theirs.median, "it counts for nothing"


def test_an_attention_that_refuses_this_model_is_none_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softcaps are what SDPA does not know."""
    model = half("gemma2")
    monkeypatch.setattr(type(model.hf), "_supports_sdpa", True)
    assert other_attentions(model) == ["sdpa"]
    assert set(measure(model).routes) == {"cached", "padded"}
    assert model.hf.config._attn_implementation == "eager"


def test_attention_comes_back_as_it_was_also_where_a_pass_fails() -> None:
    model = half()
    config = model.hf.config
    before = config._attn_implementation
    (other,) = other_attentions(model)
    with suppress(RuntimeError), attention_by(model, other), model.running() as tree:
        assert tree.configs[0]._attn_implementation == other != before
        assert config._attn_implementation == before, "of private modules alone"
        raise RuntimeError
    assert config._attn_implementation == before
    measure(model)
    assert config._attn_implementation == before


def test_activations_beyond_float16_are_refused_in_words() -> None:
    hf = copy.deepcopy(families.build("llama"))
    hf.model.layers[1].mlp.up_proj.weight.mul_(2**15)
    hf.model.layers[1].mlp.down_proj.weight.mul_(2**-15)
    hf = hf.bfloat16()
    require(check_model(wrap_in_memory(hf, families.tiny_tokenizer()), thorough=False))
    model = wrap_in_memory(hf.half(), families.tiny_tokenizer())
    with pytest.raises(
        errors.SelfCheckError,
        match=r"does not run in float16: its own logits are not finite at \d+ of 36 tokens .*beyond 65,504.*bfloat16",
    ):
        check_model(model, thorough=False)


@pytest.mark.parametrize("dtype", HALF)
def test_weights_that_are_not_numbers_are_named(dtype: torch.dtype) -> None:
    model = half(dtype=dtype)
    model.hf.get_submodule("model.layers.1.mlp.up_proj").weight[3, 2] = float("inf")
    with pytest.raises(errors.SelfCheckError, match=r"not finite.*model\.layers\.1\.mlp\.up_proj\.weight"):
        check_model(model, thorough=False)


@pytest.mark.parametrize("dtype", HALF)
def test_our_way_rounded_twice_as_much_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fault but of precision: keys that pass through a smaller dtype."""
    plain = yardstick.recorded

    def coarse(cache: Any, row: int) -> Any:
        found = plain(cache, row)
        return replace(found, keys=tuple(_rounded(keys) for keys in found.keys))

    monkeypatch.setattr(yardstick, "recorded", coarse)
    report = check_model(half(dtype=dtype), thorough=False)
    assert {finding.claim for finding in report.findings if not finding.passed} == {"batch"}
    assert report.yardstick is not None
    assert report.yardstick.n_tokens == 4 * 8 * 32, "more texts are looked at before a model is refused"
    with pytest.raises(errors.SelfCheckError, match=r"times what the model's own ways differ by, at most 1\.5"):
        require(report)


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).to(x.dtype)


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_that_flip_do_not_refuse_a_mixture(family: str) -> None:
    """5 of the 50 draws of docs/lab-log.md: none is refused, and tokens of each change their experts by rounding."""
    draws = [drawn(family, seed, torch.bfloat16) for seed in range(5)]
    assert all(draw.flipped_tokens > 0 for draw in draws)
    assert [draw.seed for draw in draws if draw.failed] == []


def test_texts_are_of_one_length_and_begin_alike() -> None:
    model = half()
    first, second = prose(model, 0), prose(model, 1)
    for texts in (first, second):
        assert [len(ids) for ids in texts] == [PREFIX + 32] * 8
        assert len({ids[:PREFIX] for ids in texts}) == 1
        assert len({ids[PREFIX:] for ids in texts}) == 8
    assert not {ids[PREFIX:] for ids in first} & {ids[PREFIX:] for ids in second}
    with_bos = wrap_in_memory(model.hf, families.tiny_tokenizer(add_bos=True))
    assert all(ids[0] == families.BOS_ID not in ids[1:] for ids in prose(with_bos, 0)), "one BOS, in front"


def test_a_short_context_is_not_left() -> None:
    model = half("gpt2")
    model.max_context = 16
    assert measure(model).n_tokens == 8 * (16 - PREFIX)


def test_spreads_are_quantiles_and_nothing_passes_by_not_being_a_number() -> None:
    spread = Spread.of(torch.arange(-100.0, 1.0))
    assert (spread.median, spread.high) == (50.0, 99.0)
    assert Spread.of(torch.tensor([0.0, float("nan")])) == Spread(float("inf"), float("inf"))
    assert Spread(1.0, 3.0).over(Spread(2.0, 2.0)) == 1.5
    assert Spread(0.0, 0.0).over(Spread(0.0, 0.0)) == 0
    assert Spread(0.0, 1e-9).over(Spread(0.0, 0.0)) == float("inf")
    assert Spread.largest([Spread(1.0, 3.0), Spread(2.0, 2.5)]) == Spread(2.0, 3.0)
