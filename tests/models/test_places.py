"""A path → the folder that holds the model, or one error that says what is there and what to give."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import families
import patchscopes as ps
from patchscopes import errors
from patchscopes.models.places import folder_at, is_path
from patchscopes.settings import Settings
from tiny_gguf import SHAPES, Tiny, write_gguf

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d2\nsize 269060552\n"
SPLIT: dict[str, Any] = {"split.no": 0, "split.count": 2}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(path: Path, settings: Settings) -> str:
    with pytest.raises((errors.ModelFilesError, errors.UnsupportedModelError, errors.UnknownModelError)) as caught:
        folder_at(path, settings)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("names", [["model.safetensors"], ["tokenizer.json"], ["config.json", "tokenizer.json"]])
def test_pointers_of_git_lfs(names: list[str], folder: Path, settings: Settings) -> None:
    for name in names:
        (folder / name).write_text(POINTER)
    message = refused(folder, settings)
    assert f"git-lfs pointers in place of {', '.join(names)}:" in message
    assert "git lfs pull" in message


def test_a_pointer_for_a_gguf_file(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    assert "git-lfs pointers in place of m.gguf" in refused(tmp_path / "m.gguf", settings)
    (tmp_path / "alone").mkdir()
    (tmp_path / "m.gguf").rename(tmp_path / "alone" / "m.gguf")
    assert "git-lfs pointers in place of m.gguf" in refused(tmp_path / "alone", settings)


@pytest.mark.parametrize("name", ["m.gguf", "M.GGUF", "m.Gguf"])
def test_a_gguf_file_whatever_its_case_and_its_folder(name: str, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "one").mkdir()
    write_gguf(tmp_path / "one" / name)
    (tmp_path / "one" / "README.md").write_text("a model")
    made = folder_at(tmp_path / "one" / name, settings)
    assert (made / "config.json").is_file()
    assert folder_at(tmp_path / "one", settings) == made
    assert is_path(f"no/such/{name}")


def test_several_gguf_files(tmp_path: Path, settings: Settings) -> None:
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        write_gguf(tmp_path / name)
    assert "holds 2 .gguf files (a-Q4.gguf, a-Q8.gguf); give one" in refused(tmp_path, settings)


def test_parts_of_a_split_gguf(tmp_path: Path, settings: Settings) -> None:
    second = tuple(f"blk.1.{name}.weight" for name in (*SHAPES, "attn_norm", "ffn_norm"))
    write_gguf(tmp_path / "m-00001-of-00002.gguf", Tiny(without=second, metadata=SPLIT))
    nothing = {"general.architecture": None, "tokenizer.ggml.tokens": None}
    write_gguf(tmp_path / "m-00002-of-00002.gguf", Tiny(metadata={**SPLIT, "split.no": 1, **nothing}))
    for number in (1, 2):
        message = refused(tmp_path / f"m-0000{number}-of-00002.gguf", settings)
        assert f"part {number} of 2 of a split GGUF" in message
        assert "llama-gguf-split --merge" in message
    with pytest.raises(errors.UnsupportedModelError, match="part 1 of 2"):
        folder_at(tmp_path, settings)


def test_a_gguf_that_is_whole_may_say_so(tmp_path: Path, settings: Settings) -> None:
    write_gguf(tmp_path / "m.gguf", Tiny(metadata={"split.no": 0, "split.count": 1, "general.type": "model"}))
    assert folder_at(tmp_path / "m.gguf", settings).is_dir()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "is a GGUF adapter (lora), no model"),
        ({"general.type": "mmproj"}, "the vision part"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.type": "vocab"}, "a vocabulary alone"),
    ],
)
def test_a_gguf_that_is_added_to_a_model(
    metadata: dict[str, Any], said: str, tmp_path: Path, settings: Settings
) -> None:
    write_gguf(tmp_path / "m.gguf", Tiny(metadata={**metadata, "tokenizer.ggml.tokens": None}))
    assert said in refused(tmp_path / "m.gguf", settings)


def test_a_control_vector(tmp_path: Path, settings: Settings) -> None:
    write_gguf(tmp_path / "m.gguf", Tiny(name_of_architecture="controlvector"))
    assert "is a control vector" in refused(tmp_path / "m.gguf", settings)


def test_a_folder_of_checkpoints(folder: Path, tmp_path: Path, settings: Settings) -> None:
    output = tmp_path / "output"
    for step in (500, 1000, 90):
        shutil.copytree(folder, output / f"checkpoint-{step}")
    (output / "runs").mkdir()
    message = refused(output, settings)
    assert "checkpoints of a training (checkpoint-1000, checkpoint-500, checkpoint-90)" in message
    assert f"give one: {output / 'checkpoint-1000'}" in message
    assert folder_at(output / "checkpoint-1000", settings) == output / "checkpoint-1000"


def test_a_folder_of_models(folder: Path, tmp_path: Path, settings: Settings) -> None:
    for name in ("b", "a"):
        shutil.copytree(folder, tmp_path / "models" / name)
    assert f"give one: {tmp_path / 'models' / 'a'}" in refused(tmp_path / "models", settings)


def test_other_folders_that_are_no_model(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "zero" / "global_step10").mkdir(parents=True)
    assert "zero_to_fp32.py" in refused(tmp_path / "zero", settings)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "model_index.json").write_text("{}")
    assert "a diffusion pipeline" in refused(tmp_path / "pictures", settings)


def test_a_file_of_a_models_folder(folder: Path, settings: Settings) -> None:
    assert f"Its folder holds a model: give {folder}" in refused(folder / "model.safetensors", settings)


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """A repository in the hub's cache, with one snapshot."""
    place = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(folder, place / "snapshots" / "aaa")
    (place / "blobs").mkdir()
    return place


def test_the_hubs_cache_of_one_model(cache: Path, settings: Settings) -> None:
    assert folder_at(cache, settings) == cache / "snapshots" / "aaa"
    shutil.copytree(cache / "snapshots" / "aaa", cache / "snapshots" / "bbb")
    message = refused(cache, settings)
    assert "the hub's cache of org/tiny, with 2 snapshots (aaa, bbb)" in message
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb\n")
    assert folder_at(cache, settings) == cache / "snapshots" / "bbb"
    assert f"give one: {cache}" in refused(cache.parent, settings)


def test_a_model_in_the_hubs_cache_loads(cache: Path) -> None:
    model = ps.load(cache)
    assert (model.id, model.n_layers) == (str(cache), families.n_layers_of("llama"))
    assert model.fingerprint == ps.load(cache / "snapshots" / "aaa").fingerprint
