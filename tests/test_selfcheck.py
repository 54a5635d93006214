"""The self-check: models broken on purpose fail the claim that they break, and no model passes by luck."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import families
from conftest import tiny_model
from patchscopes import errors
from patchscopes.kv import sharing
from patchscopes.models import Model, attached, wrap_in_memory
from patchscopes.models.architectures import TABLE
from patchscopes.selfcheck import Finding, Report, check_model, require

CLAIMS = ["self-write", "causal", "lens", "batch", "inert"]
D_VOCAB = len(families.tiny_tokenizer())


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])


@pytest.fixture(autouse=True)
def nothing_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks that break a model here stand for a family that is so; what a caller attaches is checked elsewhere."""
    monkeypatch.setattr(attached, "_all", lambda *_: iter(()))


def broken(family: str = "llama", dtype: torch.dtype = torch.float32) -> Model:
    """A model of `family` of one's own, to be broken."""
    return wrap_in_memory(copy.deepcopy(families.build(family)).to(dtype), families.tiny_tokenizer())


def failed(model: Model, **options: bool) -> set[str]:
    return {finding.claim for finding in check_model(model, **options).findings if not finding.passed}


def wrap(hf: Any, dtype: torch.dtype = torch.float32) -> Model:
    """A model of a family outside the tests' own, weights drawn wide enough that blocks matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(parameter + spread * noise if parameter.ndim == 1 else spread * noise)
    return wrap_in_memory(hf.eval().to(dtype), families.tiny_tokenizer())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_passes(family: str) -> None:
    report = check_model(tiny_model(family))
    assert [finding.claim for finding in report.findings] == CLAIMS
    assert report.passed, report
    require(report)


@every_dtype
def test_a_model_that_sees_later_tokens_fails_causal(dtype: torch.dtype) -> None:
    model = broken(dtype=dtype)
    model.blocks[1].register_forward_hook(lambda _, __, output: output + 0.1 * output.mean(dim=1, keepdim=True))
    assert "causal" in failed(model)
    assert "lens" not in failed(model)
    with pytest.raises(errors.SelfCheckError, match="causal: a write changes logits after it and none before"):
        require(check_model(model))


@every_dtype
def test_an_encoder_run_as_a_decoder_fails_causal(dtype: torch.dtype) -> None:
    config = transformers.BertConfig(
        vocab_size=D_VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=True,
    )
    model = wrap(transformers.BertLMHeadModel(config), dtype)
    assert "causal" not in failed(model)
    for module in model.hf.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
        if hasattr(module, "is_decoder"):
            module.is_decoder = False
    model.hf.config.is_decoder = False
    model.refresh()
    assert "causal" in failed(model)


@every_dtype
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("granite", {"logit_divisor": None}),
        ("cohere", {"logit_multiplier": None}),
        ("gemma2", {"softcap": None}),
        ("llama", {"final_norm": None}),
        ("llama", {"final_norm": "model.layers.0.input_layernorm"}),
        ("gpt2", {"final_norm": "transformer.h.3.ln_1"}),
    ],
)
def test_a_wrong_norm_scale_or_cap_fails_lens(family: str, change: dict[str, str | None], dtype: torch.dtype) -> None:
    """`batch` may fail with it: the engine reads logits by the same scale and cap."""
    model = broken(family, dtype)
    model.architecture = replace(model.architecture, **change)  # type: ignore[arg-type]
    assert {"lens"} <= failed(model) <= {"lens", "batch"}
    assert {"lens"} <= failed(model, thorough=False) <= {"lens", "batch"}, "at every load, too"


@every_dtype
@pytest.mark.parametrize(
    "order",
    [[3, 2, 1, 0], [1, 2, 3, 0], [0, 1, 3, 2], [0, 1, 2, 2]],
    ids=["reversed", "rotated", "last two swapped", "last missing"],
)
def test_blocks_in_the_wrong_order_fail_lens_and_inert(order: list[int], dtype: torch.dtype) -> None:
    """What is called the last layer is not: others read what is written there, and norm and head do not follow it."""
    model = broken(dtype=dtype)
    model.blocks = tuple(model.blocks[index] for index in order)
    assert failed(model) >= {"lens", "inert"}


def forward_without(model: Model, *names: str) -> None:
    """Let the model's forward forget some of its inputs."""
    forward = model.hf.forward

    def forgetful(**inputs: Any) -> Any:
        return forward(**{name: value for name, value in inputs.items() if name not in names})

    model.hf.forward = forgetful  # type: ignore[method-assign]


@every_dtype
@pytest.mark.parametrize(
    ("family", "forgotten"),
    [("gpt2", "position_ids"), ("llama", "position_ids"), ("bloom", "attention_mask")],
)
def test_a_model_whose_padding_shows_fails_batch_alone(family: str, forgotten: str, dtype: torch.dtype) -> None:
    """Off float32 the model's own padded way is at fault as well, and must not become what ours is measured by."""
    model = broken(family, dtype)
    forward_without(model, forgotten)
    if family == "llama" and dtype == torch.float32:  # its angles are relative: columns of copied prefixes will do
        assert failed(model) == set()
        assert sharing(model) == "copied"
    else:
        assert failed(model) == {"batch"}


@every_dtype
def test_a_model_that_reads_its_neighbours_is_refused(dtype: torch.dtype) -> None:
    """So little that rounding to bfloat16 hides it from `batch`; a write that other rows see fails two claims there."""
    model = broken(dtype=dtype)
    model.blocks[2].register_forward_hook(lambda _, __, output: output + output.mean(dim=0, keepdim=True) * 0.1
                                          if output.shape[0] > 1 else output)  # fmt: skip
    assert ({"causal", "inert"} if dtype == torch.bfloat16 else {"batch"}) <= failed(model)
    assert "lens" not in failed(model)


@every_dtype
def test_a_model_that_draws_at_random_fails_self_write(dtype: torch.dtype) -> None:
    """All of its own ways differ by what it draws, and so does the same pass run again, which is what tells it."""
    model = broken(dtype=dtype)
    generator = torch.Generator().manual_seed(0)

    def noise(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + 0.1 * torch.randn(output.shape, generator=generator).to(output)

    model.blocks[0].register_forward_hook(noise)
    assert "self-write" in failed(model)


@every_dtype
def test_a_block_whose_output_is_not_its_whole_state_fails_causal(dtype: torch.dtype) -> None:
    """A stream that goes round the blocks: what is written never reaches the logits."""
    model = broken(dtype=dtype)
    kept: list[Tensor] = []
    model.blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model.blocks[2].register_forward_pre_hook(
        lambda _, args: (kept[-1][torch.arange(len(args[0])) % len(kept[-1])], *args[1:])
    )
    assert "causal" in failed(model)


def test_not_a_number_passes_no_claim() -> None:
    model = broken()
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[5, 3] = float("nan")
    assert {"lens", "batch", "inert", "self-write"} <= failed(model)


@pytest.mark.parametrize("n", [1, 2])
def test_models_of_one_or_two_blocks_pass(n: int) -> None:
    config = transformers.LlamaConfig(
        vocab_size=D_VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=n, num_attention_heads=4
    )
    assert check_model(wrap(transformers.LlamaForCausalLM(config)), thorough=False).passed


# ------------------------------------------------------------------------------ families outside the architecture table


def helium() -> transformers.PreTrainedModel:
    config = transformers.HeliumConfig(
        vocab_size=D_VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return transformers.HeliumForCausalLM(config).eval()


@every_dtype
def test_a_family_outside_the_table_is_found_by_structure_and_admitted(dtype: torch.dtype) -> None:
    assert "helium" not in TABLE
    model = wrap(helium(), dtype)
    assert (model.architecture.blocks, model.architecture.final_norm) == ("model.layers", "model.norm")
    assert check_model(model).passed


@every_dtype
def test_a_family_outside_the_table_with_a_scale_of_its_own_is_refused(dtype: torch.dtype) -> None:
    model = wrap(helium(), dtype)
    forward = model.hf.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.hf.forward = scaled  # type: ignore[method-assign]
    assert failed(model) == {"lens", "batch"}
    with pytest.raises(errors.SelfCheckError, match=r"(?s)lens.*\n.*not supported"):
        require(check_model(model))


def test_a_family_whose_blocks_cannot_be_read_is_refused_and_does_not_crash() -> None:
    """GPT's blocks return lists."""
    config = transformers.OpenAIGPTConfig(vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = wrap_in_memory(transformers.OpenAIGPTLMHeadModel(config).eval(), families.tiny_tokenizer())
    with pytest.raises(errors.SelfCheckError, match=r"table .openai-gpt., and it does not run"):
        check_model(model)


@every_dtype
def test_a_family_outside_the_table_that_keeps_no_cache_is_refused_and_does_not_crash(dtype: torch.dtype) -> None:
    model = wrap(helium(), dtype)
    forward_without(model, "cache")
    with pytest.raises(errors.SelfCheckError, match="does not run as the self-check needs it to"):
        check_model(model)


def test_a_structure_that_does_not_tell_is_refused_with_what_was_found() -> None:
    hf = helium()
    hf.extra = nn.ModuleList([nn.Identity() for _ in range(3)])
    with pytest.raises(errors.UnsupportedModelError, match=r"2 module lists of 3 entries \(model.layers, extra\)"):
        wrap_in_memory(hf, families.tiny_tokenizer())


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(errors.UnsupportedModelError, match="no language-model head"):
        wrap_in_memory(families.build("llama").model, families.tiny_tokenizer())


SMALL = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL)), "linear_attention"),
        (lambda: transformers.RwkvForCausalLM(transformers.RwkvConfig(**SMALL)), "a recurrent state"),
        (
            lambda: transformers.Lfm2ForCausalLM(
                transformers.Lfm2Config(
                    **SMALL, intermediate_size=64, num_key_value_heads=2, layer_types=["conv", "full_attention"]
                )
            ),
            "state-space or hybrid model .layers of kind conv",
        ),
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, intermediate_size=64)), "an encoder"),
        (
            lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL, intermediate_size=64)),
            "an encoder",
        ),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=D_VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            ),
            "an encoder-decoder",
        ),
    ],
    ids=["mamba", "rwkv", "lfm2", "bert", "roberta", "t5"],
)
def test_other_kinds_of_model_in_memory_are_refused_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(errors.UnsupportedModelError, match=reason):
        wrap_in_memory(make(), families.tiny_tokenizer())


def test_an_encoder_that_its_config_does_not_give_away_is_refused_too() -> None:
    config = transformers.DistilBertConfig(vocab_size=D_VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    hf = transformers.DistilBertForMaskedLM(config).eval()
    with pytest.raises(errors.ModelError):
        require(check_model(wrap_in_memory(hf, families.tiny_tokenizer())))


def test_require_says_which_claims_failed_and_by_how_much() -> None:
    good = Finding("causal", "a", 0.0, 0.1, passed=True)
    bad = Finding("lens", "the last layer is read", 0.53, 0.001, passed=False)
    require(Report("m", (good,)))
    with pytest.raises(
        errors.SelfCheckError, match=r"m does not obey.*\n  lens: the last layer is read: deviation 0.53, at"
    ) as e:
        require(Report("m", (good, bad)))
    assert "causal" not in str(e.value)


@every_dtype
@pytest.mark.parametrize("swapped", [(0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2)])
def test_blocks_in_another_order_than_the_models_own_fail_causal(swapped: tuple[int, ...], dtype: torch.dtype) -> None:
    model = broken(dtype=dtype)
    model.blocks = tuple(model.blocks[i] for i in swapped)
    report = check_model(model)
    assert "causal" in {finding.claim for finding in report.findings if not finding.passed}
