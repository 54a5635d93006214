"""Options of `patchscopes inspect` and `run` that say where a state goes: another model, f, a place in a prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import families
from cli_run import run
from patchscopes import api, load
from patchscopes.errors import OptionError
from patchscopes.mappings import Mapping, Mappings, Side

TEXT = "the capital of the country of Spain"


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another tiny model, of another width."""
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    families.build("qwen3").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mapping(tiny_folder: Path, wide_folder: Path) -> Path:
    """A mapping from the one to the other, beside it."""
    source, target = load(str(tiny_folder)), load(str(wide_folder))
    draw = torch.Generator().manual_seed(3)
    made = Mapping(torch.randn(source.d_model, target.d_model, generator=draw), torch.ones(target.d_model))
    path = wide_folder / "f.safetensors"
    Mappings("affine", Side.of(source), Side.of(target), {(2, 1): made}).save(path)
    return path


def test_one_model_into_another(
    tiny_folder: Path, wide_folder: Path, mapping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = ["--source-layers", "2", "--target-layers", "1"]
    command = ["inspect", "go to Spain", "--model", str(tiny_folder), "--prompt", "the capital of {} is", *layers]
    across = ["--target-model", str(wide_folder), "--mapping", str(mapping)]
    done = run([*command, *across, "--controls", "zero", "--format", "json"], capsys)
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    assert {(row["model"], row["target_model"]) for row in cells} == {(str(tiny_folder), str(wide_folder))}
    assert all(row["mapping"].startswith("affine:") for row in cells)
    spec = {
        "model": str(tiny_folder), "target_model": str(wide_folder), "mapping": "f.safetensors",
        "sources": ["go to Spain"],
        "prompt": "the capital of {} is", "source_layers": 2, "target_layers": 1, "controls": ["zero"],
    }  # fmt: skip
    (wide_folder / "spec.json").write_text(json.dumps(spec))
    kept = run(["run", str(wide_folder / "spec.json"), "--out", str(tmp_path / "run")], capsys)
    shown = run(["show", str(tmp_path / "run"), "--format", "json"], capsys)
    assert kept.code == 0
    assert json.loads(shown.out)["cells"] == cells
    without = run([*command, "--target-model", str(wide_folder)], capsys)
    assert (without.code, "give a mapping from one to the other" in without.err) == (2, True)
    wrong = run([*command, "--mapping", str(mapping)], capsys)
    assert (wrong.code, "fitted for the target model" in wrong.err) == (2, True)
    none = run([*command, *across[:2], "--mapping", str(tmp_path / "none")], capsys)
    assert (none.code, "cannot be read as mappings" in none.err) == (2, True)


def test_a_revision_is_of_the_source_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line and from a specification alike; what is slow is told of both models."""
    loaded: list[tuple[str, dict[str, Any]]] = []

    def recorded(name: str, *, notify: Callable[[str], None], **how: Any) -> str:
        notify(f"pulling {name}")
        loaded.append((name, {key: how[key] for key in ("dtype", "revision") if how.get(key)}))
        if name == "b":
            raise OptionError("enough")
        return name

    monkeypatch.setattr(api, "load", recorded)
    (tmp_path / "s.json").write_text(
        '{"model": "a", "target_model": "b", "revision": "r", "dtype": "bfloat16", "sources": ["x"]}'
    )
    across = ["--model", "a", "--target-model", "b", "--revision", "r", "--dtype", "bfloat16"]
    for command in (["inspect", "x", *across], ["run", str(tmp_path / "s.json"), "--out", str(tmp_path / "run")]):
        loaded.clear()
        assert "pulling a\npulling b\n" in run(command, capsys).err
        assert loaded == [("a", {"dtype": "bfloat16", "revision": "r"}), ("b", {"dtype": "bfloat16"})]


def test_a_place_in_the_prompt_and_masks(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "inspect",
        TEXT,
        "--model",
        str(tiny_folder),
        "--prompt",
        TEXT,
        "--source-layers",
        "2",
        "--target-layers",
        "1",
    ]
    masks = ["--source-mask", "the capital of", "--target-mask", " the country of Spain"]
    done = run([*command, "--target-at", "capital of", *masks, "--controls", "none", "--format", "json"], capsys)
    assert done.code == 0
    (cell,) = json.loads(done.out)["cells"]
    assert cell["target_positions"] == [2]
    assert cell["prompt"] == TEXT
    missing = run(command, capsys)
    assert (missing.code, "needs target_at" in missing.err) == (2, True)
    hidden = run([*command, "--target-at", "capital of", "--target-mask", "capital of"], capsys)
    assert (hidden.code, "written and masked" in hidden.err) == (2, True)
    for refused in (missing, hidden):
        assert "Traceback" not in refused.err
