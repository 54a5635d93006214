"""Maps fitted on text: planted ones come back, parts do not leak, files keep them, what cannot be fitted is refused."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch

import families
from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes.data import Passage, load_prose
from patchscopes.errors import MappingError, OptionError
from patchscopes.mappings import FitOptions, Kind, Mapping, Mappings, Quality, fit, fit_several, held_out_quality
from patchscopes.mappings import texts as texts_module
from patchscopes.mappings.fitting import RIDGES
from patchscopes.mappings.texts import FitTexts
from patchscopes.models import Model, wrap_in_memory
from patchscopes.passes import text_states

PASSAGES = [passage for passage in load_prose().items if len(passage.text) > 150][::20]
TEXTS = [passage.text for passage in PASSAGES]


def planted(family: str, weight: torch.Tensor) -> Model:
    """A model of `family` whose embeddings are those of the tiny Llama times `weight`."""
    hf = copy.deepcopy(families.build(family))
    hf.get_input_embeddings().weight.data = families.build("llama").get_input_embeddings().weight @ weight
    return wrap_in_memory(hf, families.tiny_tokenizer())


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(5))).Q


def digests(mappings: Mappings) -> dict[tuple[int, int], str]:
    return {pair: mapping.digest for pair, mapping in mappings.by_pair.items()}


def quality_of(mappings: Mappings, pair: tuple[int, int]) -> Quality:
    quality = mappings[pair].quality
    assert quality is not None
    assert quality.r2 is not None
    assert quality.r2_median is not None
    return quality


@pytest.mark.parametrize("kind", ["affine", "orthogonal"])
def test_a_rotation_between_two_models_is_found(llama: Model, kind: Kind) -> None:
    turned = planted("mistral", rotation(32))
    mappings = fit(llama, turned, TEXTS, [(0, 0)], kind=kind)
    assert torch.allclose(mappings[0, 0].weight, rotation(32), atol=1e-4)
    assert mappings[0, 0].bias.abs().max() < 1e-4
    assert quality_of(mappings, (0, 0)).r2 == pytest.approx(1, abs=1e-6)


def test_widths_may_differ(llama: Model) -> None:
    weight = torch.randn(32, 40, generator=torch.Generator().manual_seed(5))
    wider = planted("qwen3", weight)
    mappings = fit(llama, wider, TEXTS, [(0, 0), (2, 1)])
    assert torch.allclose(mappings[0, 0].weight, weight, atol=1e-3)
    assert (mappings.source.d_model, mappings.target.d_model) == (32, 40)
    back = fit(wider, llama, TEXTS, [(0, 0)], kind="orthogonal")[0, 0].weight
    assert torch.allclose(back.T @ back, torch.eye(32), atol=1e-5)


def test_kinds_share_passes_and_come_out_as_if_alone(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal n_calls
        n_calls += 1
        return text_states(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(texts_module, "text_states", counted)
    pairs, ridge = [(1, 3), (2, 2)], FitOptions(ridge=1e-2)
    together = fit_several(llama, llama, TEXTS, pairs, options=ridge)
    shared, n_calls = n_calls, 0
    assert list(together) == ["affine", "ridge", "orthogonal"]
    for kind, mappings in together.items():
        alone = fit(llama, llama, TEXTS, pairs, kind=kind, options=ridge if kind == "ridge" else FitOptions())
        assert digests(alone) == digests(mappings)
    assert n_calls == 3 * shared
    assert torch.allclose(together["affine"][2, 2].weight, torch.eye(32), atol=1e-4), "a layer to itself is as it is"


@pytest.mark.parametrize(("tokens", "positions"), [(50, 1), (300, 77), (10_000, 10_000)])
def test_batches_do_not_show(llama: Model, monkeypatch: pytest.MonkeyPatch, tokens: int, positions: int) -> None:
    expected = fit(llama, llama, TEXTS, [(1, 3)])[1, 3]
    monkeypatch.setattr(texts_module, "TOKENS_AT_ONCE", tokens)
    monkeypatch.setattr(texts_module, "POSITIONS_AT_ONCE", positions)
    found = fit(llama, llama, TEXTS, [(1, 3)])[1, 3]
    assert torch.allclose(found.weight, expected.weight, atol=1e-4)
    assert torch.allclose(found.bias, expected.bias, atol=1e-4)


def test_quality_is_that_of_text_that_was_not_fitted_on(llama: Model) -> None:
    mappings = fit(llama, llama, PASSAGES, [(1, 3)])
    quality = quality_of(mappings, (1, 3))
    parts = FitTexts.of(llama, llama, PASSAGES, FitOptions()).parts
    held_out = [one.source for one in parts["held_out"]]
    assert not set(held_out) & {one.source for one in parts["fit"]}
    texts = list(text_states(llama, held_out, (1, 3)))
    x, y = (torch.cat([text.states[layer][1:] for text in texts]).double() for layer in (1, 3))
    error = (y - mappings[1, 3](x.float()).double()).square().sum(0)
    around = (y - y.mean(0)).square().sum(0)
    assert quality.n_tokens == len(x)
    assert quality.r2 == pytest.approx(float(1 - error.sum() / around.sum()), abs=1e-6)
    assert quality.r2_median == pytest.approx(float((1 - error / around).median()), abs=1e-6)
    assert mappings.fitted["n_tokens"] == {
        part: sum(len(one.positions) for one in texts) for part, texts in parts.items()
    }
    of_all = held_out_quality(mappings, llama, llama, TEXTS)[1, 3]
    assert of_all.n_tokens == sum(mappings.fitted["n_tokens"].values())


def test_what_was_fitted_on_is_told(llama: Model) -> None:
    told: list[str] = []
    mappings = fit(llama, llama, PASSAGES, [(1, 3)], options=FitOptions(seed=7, held_out=0.25, tell=told.append))
    digest = hashlib.sha256(b"".join(text.encode() + b"\0" for text in TEXTS)).hexdigest()
    assert mappings.fitted["texts_sha256"] == digest
    assert mappings.fitted["seed"] == 7
    assert sum(mappings.fitted["n_texts"].values()) == len(PASSAGES)
    assert mappings.fitted["versions"]["torch"] == torch.__version__
    n = mappings.fitted["n_tokens"]
    assert n["held_out"] / sum(n.values()) == pytest.approx(0.25, abs=0.1)
    assert told[0].startswith(f"1 pairs of layers, {n['fit']:,} positions of")
    none = fit(llama, llama, PASSAGES, [(1, 3)], options=FitOptions(held_out=0.0))
    assert none[1, 3].quality is None


def test_a_ridge_is_chosen_on_a_part_of_the_fit_texts(llama: Model) -> None:
    """With hardly more positions than dimensions, a map without a ridge does worse on other text."""
    few = [Passage(text[:60], f"{n}") for n, text in enumerate(TEXTS[:6])]
    options = FitOptions(held_out=0.3)
    ridge = fit(llama, llama, few, [(0, 4), (3, 4)], kind="ridge", options=options)
    assert set(ridge.fitted["n_texts"]) == {"fit", "validation", "held_out"}
    assert set(ridge.fitted["ridge"]) == {"0-4", "3-4"}
    assert set(ridge.fitted["ridge"].values()) <= set(RIDGES)
    plain = fit(llama, llama, few, [(0, 4), (3, 4)], options=options)
    assert quality_of(ridge, (0, 4)).r2_median > quality_of(plain, (0, 4)).r2_median
    given = fit(llama, llama, few, [(0, 4)], kind="ridge", options=FitOptions(ridge=0.5))
    assert given.fitted["ridge"] == {"0-4": 0.5}
    assert not given.fitted["ridge_chosen"]


def test_positions_of_two_models_are_those_that_agree(llama: Model) -> None:
    other = model_with("trimmed")
    texts = [f"the capital of Spain is hello and the cat of the country {word} is x" for word in TEXTS[0].split()]
    mappings = fit(llama, other, texts, [(0, 0)])
    parts = FitTexts.of(llama, other, texts, FitOptions()).parts
    assert quality_of(mappings, (0, 0)).n_tokens == sum(len(one.positions) for one in parts["held_out"])
    assert 8 * len(texts) < sum(mappings.fitted["n_tokens"].values()) < 16 * len(texts)


def test_a_file_gives_the_same_back_and_belongs_to_its_weights(llama: Model, tmp_path: Path) -> None:
    mappings = fit(llama, llama, PASSAGES, [(1, 3), (2, 3)], kind="ridge")
    mappings.save(tmp_path / "f.safetensors")
    loaded = Mappings.load(tmp_path / "f.safetensors")
    assert digests(loaded) == digests(mappings)
    assert loaded.fitted == mappings.fitted
    assert loaded[1, 3].quality == mappings[1, 3].quality
    loaded.check(llama, llama)
    other = tiny_model("mistral")
    with pytest.raises(MappingError, match="fitted for the target model llama with the weights sha256:"):
        loaded.check(llama, other)
    with pytest.raises(MappingError, match="fitted for the source model"):
        held_out_quality(loaded, other, other, PASSAGES)


def test_layers_that_are_not_there(llama: Model) -> None:
    for pairs, said in (
        ([(5, 1)], "source layer 5 is out of range: llama has layers 0 .* to 4"),
        ([(1, -1)], "target layer -1 is out of range"),
        ([], "no pair of layers"),
    ):
        with pytest.raises(MappingError, match=said):
            fit(llama, llama, PASSAGES, pairs)


def test_texts_that_are_too_few_or_too_short(llama: Model) -> None:
    with pytest.raises(MappingError, match=r"\d+ positions in 1 texts are too few .* from 32 dimensions: .* 33 .* 66"):
        fit(llama, llama, ["the capital of Spain is hello", "the cat of Syria is hello"], [(1, 3)])
    assert (
        len(
            fit(
                llama,
                llama,
                ["the cat of the cat", "the cat of Spain"],
                [(1, 3)],
                kind="ridge",
                options=FitOptions(ridge=1.0),
            )
        )
        == 1
    )
    with pytest.raises(
        MappingError, match=r"none of 3 texts has 2 positions to fit on \(6 tokens in all\); give whole"
    ):
        fit(llama, llama, ["the cat", "the capital", "of Spain"], [(1, 3)])
    with pytest.raises(MappingError, match=r"nothing can be held out .* 1 sections cannot be split into 2 parts"):
        fit(llama, llama, TEXTS[:1], [(1, 3)])
    with pytest.raises(MappingError, match="one text was given; give a list"):
        fit(llama, llama, TEXTS[0], [(1, 3)])
    with pytest.raises(MappingError, match="no position is left in the held-out part"):
        fit(llama, llama, [*TEXTS[:8], "cat"], [(1, 3)], options=FitOptions(held_out=1e-9))


def test_tokenisations_that_never_agree(llama: Model) -> None:
    with pytest.raises(MappingError, match=r"tokenisations of llama and llama agree at 0 of \d+ positions of 4 texts"):
        fit(llama, model_with("trimmed"), ["Syria Wales Syria" + " Wales" * n for n in range(4)], [(1, 1)])


def test_a_text_given_twice_counts_once(llama: Model) -> None:
    """Else it could stand on both sides of the split."""
    twice = fit(llama, llama, [*TEXTS, *TEXTS], [(1, 3)])
    assert twice.fitted["left_out"] == {"text given twice": len(TEXTS)}
    assert digests(twice) == digests(fit(llama, llama, TEXTS, [(1, 3)]))


def test_options_that_cannot_be() -> None:
    for options, said in (
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"ridge": 0.0}, "ridge is 0.0; it must be above 0"),
        ({"min_position": -1}, "min_position is -1"),
    ):
        with pytest.raises(OptionError, match=said):
            FitOptions(**options)  # type: ignore[arg-type]


def test_kinds_that_are_not_fitted_here(llama: Model) -> None:
    with pytest.raises(OptionError, match="kind 'tuned' is not fitted here; there are affine, ridge, orthogonal"):
        fit(llama, llama, PASSAGES, [(1, 3)], kind="tuned")
    with pytest.raises(OptionError, match="no kind of mapping was given"):
        fit_several(llama, llama, PASSAGES, [(1, 3)], kinds=())
    with pytest.raises(OptionError, match=r"ridge is 0\.1, but maps of kind affine have none"):
        fit(llama, llama, PASSAGES, [(1, 3)], options=FitOptions(ridge=0.1))


def test_states_of_another_width_are_told() -> None:
    mapping = Mapping(torch.zeros(3, 5), torch.zeros(5))
    with pytest.raises(MappingError, match=r"states of shape \(2, 4\) were given; this mapping takes \(…, 3\)"):
        mapping(torch.zeros(2, 4))
    assert repr(mapping) == "Mapping(3 → 5, None)"
