"""A path, a hub id or a model in memory → a Model, or one clear error."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

import families
import patchscopes as ps
from conftest import tiny_model
from patchscopes import errors
from patchscopes.models import LoadOptions, Model, load_by_name, wrap_in_memory
from patchscopes.models.loading import read_device, read_dtype
from patchscopes.settings import Settings

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as `save_pretrained` writes it; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    families.build("llama").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def load(name: str | Path, **options: str) -> Model:
    return load_by_name(str(name), LoadOptions(**options), Settings(Path("/nonexistent")))  # type: ignore[arg-type]


def test_a_saved_folder_equals_the_model_in_memory(saved: Path) -> None:
    loaded, memory = load(saved), tiny_model("llama")
    ids = torch.tensor([[17, 33, 60]])
    assert torch.equal(loaded.all_logits(ids), memory.all_logits(ids))
    assert loaded.architecture == memory.architecture
    assert loaded.tokenizer("the cat")["input_ids"] == memory.tokenizer("the cat")["input_ids"]
    assert loaded.eos_ids == memory.eos_ids == {families.EOS_ID}
    assert (loaded.id, loaded.revision) == (str(saved), None)
    assert not loaded.hf.training
    rows = [ps.inspect(m, "the cat", prompt="the capital of {} is", max_new_tokens=3) for m in (loaded, memory)]
    assert [row.text for row in rows[0]] == [row.text for row in rows[1]]


def test_loading_is_silent(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(saved)
    assert capfd.readouterr() == ("", "")


def test_other_tensors_beside_the_weights_do_not_count(folder: Path) -> None:
    before = load(folder).fingerprint
    safetensors.torch.save_file({"weight": torch.ones(2)}, folder / "f.safetensors")
    assert load(folder).fingerprint == before


def test_the_fingerprint_is_that_of_the_weights(saved: Path, folder: Path) -> None:
    assert load(saved).fingerprint == load(folder).fingerprint
    assert load(saved).fingerprint.startswith("sha256:")
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    weights["model.norm.weight"] += 1e-3
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert load(saved).fingerprint != load(folder).fingerprint


def test_a_relative_path_and_one_that_ends_in_a_slash(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    for name in ("tiny", "./tiny", "tiny/", f"{saved}/"):
        assert load(name).n_layers == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_by_name(saved: Path, dtype: str) -> None:
    model = load(saved, dtype=dtype)
    assert (model.dtype_name, model.next_logits(torch.tensor([[17]])).dtype) == (dtype, torch.float32)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def only_pickled(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def garbage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"garbage!" * 100)


def empty_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("token*"), *folder.glob("chat*")]:
        path.unlink()


def broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def unknown_model_type(folder: Path) -> None:
    change_config(folder, model_type="nosuch")


def blocks_missing(folder: Path) -> None:
    change_config(folder, num_hidden_layers=6)


def wrong_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=96)


def remote_code(folder: Path) -> None:
    change_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.LM"})
    (folder / "mine.py").write_text("raise SystemExit('it ran')")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_config, "holds no model: config.json is missing"),
        (no_weights, "model.safetensors"),
        (only_pickled, "pickled weights are refused"),
        (truncated, "cannot be loaded as a language model: Error while deserializing header"),
        (garbage, "cannot be loaded as a language model: Error while deserializing header"),
        (empty_weights, "cannot be loaded as a language model: Error while deserializing header"),
        (no_tokenizer, "tokenizer.json"),
        (broken_json, "not a valid JSON"),
        (no_model_type, "model_type"),
        (unknown_model_type, "nosuch"),
        (blocks_missing, r"lacks weights that a llama needs \(model.layers.4.*, …\), which would be random"),
        (wrong_shape, r"12 in all: model.layers.0.mlp.down_proj.weight is \(32, 64\), not \(32, 96\)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_folder_is_one_error_that_names_it(folder: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(folder)
    with pytest.raises(errors.ModelFilesError, match=reason) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    remote_code(folder)
    with pytest.raises(errors.UnsupportedModelError, match="--trust-remote-code"):
        load(folder)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFilesError, match="it holds nothing"):
        load(tmp_path)


def test_an_encoder_in_a_folder_is_refused_before_its_weights_are_read(folder: Path) -> None:
    change_config(folder, model_type="bert")
    garbage(folder)
    with pytest.raises(errors.UnsupportedModelError, match="is an encoder"):
        load(folder)


def test_a_tokenizer_that_is_given_stands_in_for_one_that_is_missing(folder: Path) -> None:
    no_tokenizer(folder)
    model = load_by_name(str(folder), LoadOptions(), Settings(folder), tokenizer=families.tiny_tokenizer())
    assert model.tokenizer is families.tiny_tokenizer()


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/no-such-folder-here", "nothing.gguf"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(errors.UnknownModelError, match="no such model path"):
        load(name)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    text = tmp_path / "model.txt"
    text.write_text("hello")
    with pytest.raises(errors.UnknownModelError, match=r"is a file, but no .gguf"):
        load(text)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "not a name", "a/b/c", "a\0b"])
def test_an_unknown_name_says_what_it_was_tried_as(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        errors.UnknownModelError, match=r"no registry name .smollm2-135m, gemma3-270m.*hub id"
    ) as caught:
        load(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["float64", "fp32", "", "torch.float32", "int8"])
def test_a_dtype_that_is_not_known(saved: Path, name: str) -> None:
    with pytest.raises(errors.DeviceError, match="use one of float32, bfloat16, float16"):
        load(saved, dtype=name)


@pytest.mark.parametrize("name", ["cuda:99", "nope", "cpu:x", ""])
def test_a_device_that_is_not_there(saved: Path, name: str) -> None:
    with pytest.raises(errors.DeviceError, match=r"is not there; here are cpu"):
        load(saved, device=name)


def test_dtype_and_device_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(errors.DeviceError):
        load("/no/such/folder", dtype="float64")
    with pytest.raises(errors.DeviceError):
        load("/no/such/folder", device="nope")
    assert (read_dtype("bfloat16"), read_device("cpu").type) == (torch.bfloat16, "cpu")


def test_in_memory_without_a_tokenizer() -> None:
    with pytest.raises(errors.OptionError, match=r"came without a tokenizer; give it: load\(model, tokenizer="):
        wrap_in_memory(families.build("llama"), None)


def test_in_training_mode_is_warned_of_and_mended() -> None:
    hf = copy.deepcopy(families.build("llama")).train()
    with pytest.warns(ps.PatchscopesWarning, match="in training mode"):
        model = ps.load(hf, tokenizer=families.tiny_tokenizer())
    assert not model.hf.training
    assert not any(module.training for module in hf.modules())


def test_in_memory_is_taken_as_it_is() -> None:
    hf = copy.deepcopy(families.build("llama")).to(torch.bfloat16)
    model = ps.load(hf, tokenizer=families.tiny_tokenizer())
    assert model.hf is hf
    assert model.dtype_name == "bfloat16"


def test_fine_tuning_in_memory_changes_the_fingerprint() -> None:
    hf = copy.deepcopy(families.build("llama"))
    before = wrap_in_memory(hf, families.tiny_tokenizer()).fingerprint
    assert before == tiny_model("llama").fingerprint
    with torch.no_grad():
        hf.get_submodule("model.norm").weight[0] += 1  # type: ignore[operator, index]
    assert wrap_in_memory(hf, families.tiny_tokenizer()).fingerprint != before


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_an_option_error(given: object) -> None:
    with pytest.raises((errors.OptionError, TypeError)):
        ps.load(given)  # type: ignore[arg-type]
