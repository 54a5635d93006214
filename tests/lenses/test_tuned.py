"""Tuned lenses: a planted change of basis is found, nothing gets worse than it began, the same seed gives the same."""

from dataclasses import replace

import pytest
import torch
import transformers as hf

import families
from conftest import tiny_model
from patchscopes.data import load_prose
from patchscopes.errors import LayerError, MappingError, OptionError
from patchscopes.lenses import Schedule, TunedOptions, fit_tuned_lens, lens_logits
from patchscopes.lenses import training as training_module
from patchscopes.lenses.translators import draw_sample
from patchscopes.lenses.tuned import SHARE
from patchscopes.mappings import FitOptions, Mappings
from patchscopes.mappings.texts import FitTexts
from patchscopes.models import Model, wrap_in_memory
from patchscopes.passes import text_states

PASSAGES = [passage for passage in load_prose().items if len(passage.text) > 150][::20]
QUICK = Schedule(replays=1)


def turning() -> Model:
    """A model of one block, in which each token sees itself alone and the stream is turned into another basis."""
    config = hf.MistralConfig(
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=1,
        vocab_size=len(families.tiny_tokenizer()),
        max_position_embeddings=families.N_POSITIONS,
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    attention.v_proj.weight.copy_(rotation)
    attention.o_proj.weight.copy_(8 * torch.eye(32))
    mlp.down_proj.weight.zero_()
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        matrix.copy_(torch.randn(matrix.shape, generator=generator))
    return wrap_in_memory(model, families.tiny_tokenizer())


def by_layer(lens: Mappings) -> dict[int, dict[str, float]]:
    """What training recorded of each layer, with the divergence on held-out text."""
    found = {}
    for (layer, _), mapping in lens.by_pair.items():
        assert mapping.quality is not None
        assert mapping.quality.kl is not None
        found[layer] = {**lens.fitted["layers"][str(layer)], "kl": mapping.quality.kl}
    return found


def test_a_change_of_basis_is_found() -> None:
    lens = fit_tuned_lens(turning(), PASSAGES)
    found = by_layer(lens)[0]
    assert found["kl_logit_lens"] > 3
    assert found["kl"] < found["kl_affine"]
    assert found["kl"] < 0.05


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt-projected", "cohere", "gpt2"])
def test_every_layer_gets_better_and_none_worse_than_it_began(family: str) -> None:
    lens = fit_tuned_lens(tiny_model(family), PASSAGES, options=TunedOptions(schedule=QUICK))
    n = tiny_model(family).n_layers
    assert lens.kind == "tuned"
    assert lens.pairs == tuple((layer, n) for layer in range(n))
    for found in by_layer(lens).values():
        assert found["kl_validation"] <= found["kl_validation_start"]
        assert found["kl"] < found["kl_logit_lens"]
    mean = {key: sum(found[key] for found in by_layer(lens).values()) for key in ("kl", "kl_affine", "kl_logit_lens")}
    assert mean["kl"] < mean["kl_affine"] < mean["kl_logit_lens"]


def test_quality_is_the_divergence_on_text_that_had_no_say(llama: Model) -> None:
    options = TunedOptions(n_held_out=10_000, schedule=QUICK)
    lens = fit_tuned_lens(llama, PASSAGES, options=options)
    parts = FitTexts.of(llama, llama, PASSAGES, FitOptions(held_out=SHARE), validation=SHARE / (1 - SHARE)).parts
    assert not {one.source for one in parts["held_out"]} & {one.source for one in (*parts["fit"], *parts["validation"])}
    texts = list(text_states(llama, [one.source for one in parts["held_out"]], (0, 2)))
    for layer in (0, 2):
        divergences = []
        for text in texts:
            p = torch.log_softmax(llama.all_logits(torch.tensor([text.ids]))[0, 1:].double(), -1)
            q = torch.log_softmax(lens_logits(llama, lens, layer, text.states[layer][1:]).double(), -1)
            divergences.append((p.exp() * (p - q)).sum(-1))
        quality = lens[layer, 4].quality
        assert quality is not None
        assert quality.kl == pytest.approx(float(torch.cat(divergences).mean()), abs=1e-4)
        assert quality.n_tokens == len(torch.cat(divergences)) == lens.fitted["n_held_out"]


def test_what_training_did_is_told_and_kept(llama: Model) -> None:
    told: list[str] = []
    lens = fit_tuned_lens(llama, PASSAGES, options=TunedOptions(seed=3, tell=told.append, schedule=QUICK))
    assert told[0].startswith("training a tuned lens for llama: 4 layers,")
    assert "TFLOP, some" in told[0]
    assert told[-1].startswith("on 5")
    assert sum(line.startswith("step ") for line in told) == QUICK.looks
    training = lens.fitted["training"]
    assert training["steps"] == training["stopped_at"] > QUICK.looks
    assert (training["epochs"], training["replays"], training["batch"]) == (1, 1, 256)
    assert lens.fitted["seed"] == 3
    assert set(lens.fitted["n_tokens"]) == {"fit", "validation", "held_out"}
    assert 0 < by_layer(lens)[0]["step"] <= training["steps"]
    assert lens.fitted["versions"]["torch"] == torch.__version__
    assert all(parameter.grad is None for parameter in llama.hf.parameters()), "the model learns nothing"


def test_the_same_seed_gives_the_same_lens(llama: Model) -> None:
    options = TunedOptions(layers=(1,), schedule=QUICK)
    first, again = (fit_tuned_lens(llama, PASSAGES, options=options) for _ in range(2))
    assert first.digest == again.digest
    assert fit_tuned_lens(llama, PASSAGES, options=replace(options, seed=1)).digest != first.digest


def test_what_does_not_get_better_stops_and_stays_as_it_began(llama: Model) -> None:
    """Steps far too large: each layer's start, the best that there was, is what it keeps."""
    wild = Schedule(rate=30.0, patience=2)
    lens = fit_tuned_lens(llama, PASSAGES, options=TunedOptions(schedule=wild))
    training = lens.fitted["training"]
    assert training["stopped_at"] == training_looks(training["steps"], wild)[1] < training["steps"]
    for found in by_layer(lens).values():
        assert found["step"] == 0
        assert found["kl"] == pytest.approx(found["kl_affine"], abs=1e-5)


def training_looks(n_steps: int, schedule: Schedule) -> list[int]:
    return [round(n_steps * (k + 1) / schedule.looks) for k in range(schedule.looks)]


def test_a_layer_that_is_done_costs_nothing_more(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    n_grads: list[int] = []
    autograd = torch.autograd.grad

    def counted(*args: object, **options: object) -> object:
        n_grads.append(1)
        return autograd(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training_module.torch.autograd, "grad", counted)
    monkeypatch.setattr(training_module.Layer, "look", _done_where_even(training_module.Layer.look))
    lens = fit_tuned_lens(llama, PASSAGES, options=TunedOptions(schedule=Schedule(replays=1, looks=2)))
    steps = lens.fitted["training"]["steps"]
    half = round(steps / 2)
    assert len(n_grads) == 4 * half + 2 * (steps - half)


def _done_where_even(look: object) -> object:
    seen: list[object] = []

    def looked(layer: training_module.Layer, kl: float, step: int, patience: int) -> None:
        look(layer, kl, step, patience)  # type: ignore[operator]
        seen.append(layer)
        layer.done = len(seen) % 2 == 0

    return looked


def test_where_the_stream_is_already_read_well_a_layer_starts_as_it_is() -> None:
    """A block that adds nothing: the logit lens is exact."""
    model = turning()
    model.hf.get_submodule("model.layers.0.self_attn.o_proj").get_parameter("weight").zero_()
    lens = fit_tuned_lens(model, PASSAGES, options=TunedOptions(schedule=Schedule(rate=30.0)))
    found = by_layer(lens)[0]
    assert (found["start"], found["step"]) == ("identity", 0)
    assert torch.equal(lens[0, 1].weight, torch.eye(32))
    assert found["kl"] < 1e-6


def test_sampled_gradients_are_those_of_the_whole_vocabulary_on_average() -> None:
    model = tiny_model("gemma2")
    final = model.head_input(torch.randn(6, 32, generator=torch.Generator().manual_seed(0)))
    read = model.head_input(torch.randn(6, 32, generator=torch.Generator().manual_seed(1))).requires_grad_()
    likely = model.scaled_logits(model.hf.get_output_embeddings()(final)).topk(3).indices
    generator = torch.Generator().manual_seed(2)

    def gradient(n: int) -> torch.Tensor:
        sample = draw_sample(model, final, likely, n, generator)
        assert len(sample.weights) <= model.d_vocab
        return torch.autograd.grad(sample.loss(model, read), read)[0]

    whole = gradient(model.d_vocab)
    p = torch.log_softmax(model.scaled_logits(model.hf.get_output_embeddings()(final)), -1)
    q = torch.log_softmax(model.scaled_logits(model.hf.get_output_embeddings()(read)), -1)
    exact = torch.autograd.grad((p.exp() * (p - q)).sum(-1).mean(), read)[0]
    assert torch.allclose(whole, exact, atol=1e-6)
    sampled = torch.stack([gradient(100) for _ in range(400)]).mean(0)
    assert torch.cosine_similarity(sampled.flatten(), exact.flatten(), dim=0) > 0.98


def test_what_cannot_be_trained(llama: Model) -> None:
    with pytest.raises(LayerError, match=r"layers \[4\] cannot be trained: llama has translators for layers 0 to 3"):
        fit_tuned_lens(llama, PASSAGES, options=TunedOptions(layers=(4,)))
    with pytest.raises(MappingError, match=r"\d+ positions in 1 texts are too few"):
        fit_tuned_lens(llama, ["the cat of Spain is", "the capital of Spain", "hello the cat of"])
    with pytest.raises(MappingError, match="1 sections cannot be split into 3 parts"):
        fit_tuned_lens(llama, [PASSAGES[0].text])
    with pytest.raises(OptionError, match="n_validation is 0"):
        TunedOptions(n_validation=0)
    with pytest.raises(OptionError, match="patience is 0; it must be above 0"):
        Schedule(patience=0)
