"""What a checkpoint has and the model does not use: refused where it would change results, else warned of by name."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import families
from patchscopes import errors
from patchscopes.models import LoadOptions, Model, load_by_name
from patchscopes.settings import Settings

WEIGHTS = "model.safetensors"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved(family)` is a folder of that family, not to be changed."""
    made: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model"
            families.build(family).save_pretrained(made[family])
            families.tiny_tokenizer().save_pretrained(made[family])
        return made[family]

    return save


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`folder(family, change, **config)` is a copy whose weights `change` has changed, and whose config."""

    def make(family: str, change: Callable[[Tensors], Tensors] = dict, **config: object) -> Path:
        path = Path(shutil.copytree(saved(family), tmp_path / "model"))
        weights = change(safetensors.torch.load_file(path / WEIGHTS))
        safetensors.torch.save_file(weights, path / WEIGHTS, metadata={"format": "pt"})
        known = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(known | config))
        return path

    return make


def load(path: Path) -> Model:
    return load_by_name(str(path), LoadOptions(), Settings(Path("/nonexistent")))


def refused(path: Path) -> str:
    with pytest.raises(errors.ModelFilesError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def adding(**more: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    return lambda weights: weights | {key: torch.full(shape, 0.5) for key, shape in more.items()}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {key.replace(old, new, 1): value for key, value in weights.items()}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def test_biases_that_the_config_switches_off(folder: Callable[..., Path]) -> None:
    message = refused(folder("qwen2", use_sliding_window=False, model_type="llama", attention_bias=False))
    assert "9 in all: model.layers.0.self_attn.k_proj.bias" in message
    assert "biases that it switches off" in message


@pytest.mark.parametrize(("family", "key"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("bloom", "n_layer")])
def test_layers_beyond_those_of_the_config(family: str, key: str, folder: Callable[..., Path]) -> None:
    message = refused(folder(family, **{key: 2}))
    assert "has no place for" in message
    assert ".2." in message


@pytest.mark.parametrize(
    "key",
    [
        "model.norm.bias",
        "lm_head.bias",
        "model.embed_tokens.scale",
        "model.layers.0.self_attn.sinks",
        "layers.0.mlp.gate_proj.weight_scale",
    ],
)
def test_tensors_of_norm_head_embedding_and_blocks(key: str, folder: Callable[..., Path]) -> None:
    assert key in refused(folder("llama", adding(**{key: (32,)})))


@pytest.mark.parametrize("key", ["v_head.summary.weight", "score.weight", "model.vision_tower.layers.0.weight"])
def test_what_stands_outside_of_the_run_is_warned_of(key: str, folder: Callable[..., Path]) -> None:
    path = folder("llama", adding(**{key: (32,), "v_head.summary.bias": (1,)}))
    with pytest.warns(errors.PatchscopesWarning, match="does not use") as caught:
        load(path)
    assert key in str(caught[0].message)
    assert str(path) in str(caught[0].message)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("falcon", "transformer.h.0.self_attention.maybe_rotary.inv_freq"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gptj", "transformer.h.0.attn.bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gpt-neox", "gpt_neox.layers.0.attention.bias"),
    ],
)
def test_masks_and_frequencies_that_old_versions_saved_are_ignored(
    family: str, key: str, folder: Callable[..., Path]
) -> None:
    path = folder(family, adding(**{key: (4,)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path).architecture.family in family.replace("-", "_")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (prefixed("_orig_mod."), ("torch.compile", "'_orig_mod.'", "_orig_mod.lm_head.weight")),
        (renamed("model.layers.1.", "model.layers.1._orig_mod."), ("torch.compile", "layers.1._orig_mod.")),
        (prefixed("module."), ("DataParallel", "'module.'", "model.module.save_pretrained")),
        (prefixed("base_model.model."), ("peft", "'base_model.model.'", "merge_and_unload")),
        (renamed("layers.1.", "layers.1._fsdp_wrapped_module."), ("FSDP", "_fsdp_wrapped_module.")),
    ],
    ids=["compiled", "compiled-block", "data-parallel", "peft", "fsdp"],
)
def test_names_of_a_wrapper(
    change: Callable[[Tensors], Tensors], words: tuple[str, ...], folder: Callable[..., Path]
) -> None:
    message = refused(folder("llama", change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "change",
    [
        adding(**{"model.layers.0.self_attn.q_proj.lora_A.weight": (2, 32)}),
        adding(**{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": (2, 32)}),
        renamed("q_proj.weight", "q_proj.base_layer.weight"),
        renamed("lm_head.", "lm_head.modules_to_save.default."),
    ],
    ids=["lora", "prefixed", "base-layer", "modules-to-save"],
)
def test_tensors_of_an_adapter(change: Callable[[Tensors], Tensors], folder: Callable[..., Path]) -> None:
    message = refused(folder("llama", change))
    assert "hold an adapter's tensors" in message
    assert "load(BASE, adapter=FOLDER)" in message


def test_names_that_the_model_does_not_know_are_told_beside_those_that_it_lacks(folder: Callable[..., Path]) -> None:
    message = refused(folder("llama", renamed("mlp.up_proj", "mlp.w3")))
    assert "lacks weights that a llama needs (model.layers.0.mlp.up_proj.weight" in message
    assert "It has others, which find no place: 4 in all: model.layers.0.mlp.w3.weight" in message


def test_a_head_of_its_own_in_a_tied_model_is_in_the_model(folder: Callable[..., Path]) -> None:
    """Tied by its config, but with a head that is another matrix: the file has the last word."""
    head = torch.randn(len(families.tiny_tokenizer()), 40, generator=torch.Generator().manual_seed(1))
    path = folder("qwen3", lambda weights: weights | {"lm_head.weight": head})
    assert torch.equal(load(path).hf.get_output_embeddings().weight, head)


def test_a_whole_file_is_loaded_without_a_word(saved: Callable[[str], Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family in ("llama", "qwen3", "gpt2", "bloom", "mixtral"):
            wanted = copy.deepcopy(families.build(family)).state_dict()
            found = load(saved(family)).hf.state_dict()
            assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_shards_that_are_not_read_are_warned_of(saved: Callable[[str], Path], tmp_path: Path) -> None:
    families.build("llama").save_pretrained(tmp_path, max_shard_size=40_000)
    families.tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
    shutil.copy(tmp_path / shards[0], tmp_path / "model-00009-of-00009.safetensors")
    with pytest.warns(errors.PatchscopesWarning, match=r"are not read.*: model-00009-of-00009.safetensors"):
        load(tmp_path)
    shutil.copy(saved("llama") / WEIGHTS, tmp_path)
    with pytest.warns(errors.PatchscopesWarning, match=rf"are not read.*: {len(shards) + 1} in all: {shards[0]}"):
        load(tmp_path)
