"""What is handed to `load` in memory: taken out of what torch.compile and peft put around it, or told what to give."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import families
import patchscopes as ps
from patchscopes import errors
from patchscopes.models import Model
from patchscopes.models.wrapped import unwrapped

# peft asks transformers in an old way whether gradients are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TOKENIZER = families.tiny_tokenizer()


def own(family: str = "llama") -> Any:
    return copy.deepcopy(families.build(family))


def rows(model: Model) -> list[tuple[object, ...]]:
    found = ps.inspect(model, "the cat", prompt="x {} ->", source_layers=2, target_layers="all", max_new_tokens=4)
    return [(row.control, row.target_layer, row.text) for row in found]


def with_lora(hf: Any, **options: Any) -> Any:
    """A LoRA over `hf` that changes what the model says."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    wrapper = peft.get_peft_model(hf, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapper.named_parameters():
            if "lora_" in name:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return wrapper.eval()


def test_a_compiled_model_is_taken() -> None:
    hf = own()
    model = ps.load(torch.compile(hf, backend="eager"), tokenizer=TOKENIZER)  # type: ignore[arg-type]
    assert model.hf is hf
    assert model.fingerprint == ps.load(own(), tokenizer=TOKENIZER).fingerprint


def test_a_peft_model_is_taken_with_its_adapter() -> None:
    wrapper = with_lora(own())
    model = ps.load(wrapper, tokenizer=TOKENIZER)
    ids = torch.tensor([[17, 33, 60]])
    with torch.no_grad():
        assert torch.equal(model.all_logits(ids), wrapper(ids).logits)
    assert rows(model) != rows(ps.load(own(), tokenizer=TOKENIZER))
    assert rows(model) == rows(ps.load(with_lora(own()).merge_and_unload(), tokenizer=TOKENIZER))


def test_wrappers_are_taken_off_one_by_one() -> None:
    wrapper = with_lora(own())
    assert unwrapped(torch.compile(wrapper, backend="eager")) is wrapper.get_base_model()


def test_a_mixed_peft_model_is_taken() -> None:
    import peft

    hf = own()
    assert unwrapped(peft.PeftMixedModel(hf, peft.LoraConfig(task_type="CAUSAL_LM"))) is hf


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda peft: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "virtual tokens"),
        (lambda peft: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "virtual tokens"),
        (lambda peft: peft.LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[17]), "invocation tokens"),
        (
            lambda peft: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_layers=2, adapter_len=3),
            "before every",
        ),
    ],
    ids=["prompt", "prefix", "alora", "adaption-prompt"],
)
def test_an_adapter_that_works_through_its_wrapper_is_refused(make: Any, why: str) -> None:
    import peft

    wrapper = peft.get_peft_model(own(), make(peft))
    with pytest.raises(errors.UnsupportedModelError, match=why):
        ps.load(wrapper, tokenizer=TOKENIZER)


class ValueHead(nn.Module):
    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.pretrained_model = hf


@pytest.mark.parametrize(
    ("wrap", "advice"),
    [
        (nn.DataParallel, r"was given a DataParallel.*load\(x.module, tokenizer=tokenizer\)"),
        (ValueHead, r"load\(x.pretrained_model, tokenizer=tokenizer\)"),
        (
            lambda hf: transformers.pipeline("text-generation", model=hf, tokenizer=TOKENIZER),
            r"TextGenerationPipeline.*load\(x.model, tokenizer=x.tokenizer\)",
        ),
        (type, r"the class LlamaForCausalLM; give a model: LlamaForCausalLM.from_pretrained"),
        (lambda hf: (hf, TOKENIZER), "was given a tuple; it takes a name, a path or a transformers model"),
        (lambda hf: hf.state_dict(), "was given a OrderedDict"),
        (lambda hf: hf.model.layers, "was given a ModuleList"),
    ],
    ids=["DataParallel", "value-head", "pipeline", "class", "tuple", "state-dict", "modules"],
)
def test_what_holds_a_model_is_told_how_to_give_it(wrap: Any, advice: str) -> None:
    with pytest.raises(errors.OptionError, match=advice):
        ps.load(wrap(own()), tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("tokenizer", "advice"),
    [
        ("gpt2", r"is a str, which is none; give one of transformers: tokenizer=AutoTokenizer"),
        (TOKENIZER.backend_tokenizer, r"PreTrainedTokenizerFast\(tokenizer_object=tokenizer\)"),
        (type("Processor", (), {"tokenizer": TOKENIZER})(), r"tokenizer=processor.tokenizer"),
    ],
    ids=["name", "backend", "processor"],
)
def test_what_is_no_tokenizer_is_told_what_to_give(tokenizer: Any, advice: str, tiny_folder: Path) -> None:
    for given in (own(), tiny_folder):
        with pytest.raises(errors.OptionError, match=advice):
            ps.load(given, tokenizer=tokenizer)


def test_peft_is_not_imported_for_a_model_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert ps.load(own(), tokenizer=TOKENIZER).n_layers == 4
