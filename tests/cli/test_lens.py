"""`patchscopes lens`: tables and documents of both lenses, the lens that is kept, and what a user may get wrong."""

import json
from pathlib import Path

import pytest
import torch

import patchscopes
from cli_run import run
from patchscopes.lenses import unembed_hash
from patchscopes.mappings import Mappings


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    done = run(arguments, capsys)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for words in said:
        assert words in done.err, done.err


TEXT = "the capital of Spain is"
SENTENCE = "The old mill by the river number {} was built when nobody in the village of {} had ever seen the sea."


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATCHSCOPES_HOME."""
    monkeypatch.setenv("PATCHSCOPES_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A folder with a little text, in three files."""
    folder = tmp_path / "prose"
    folder.mkdir()
    for name in "abc":
        lines = [SENTENCE.format(n, 3 * n + ord(name)) for n in range(8)]
        (folder / f"{name}.txt").write_text("\n\n".join(lines))
    return folder


def published(folder: Path, model_path: Path) -> Path:
    model = patchscopes.load(str(model_path))
    folder.mkdir()
    config = {"d_model": 32, "num_hidden_layers": 4, "unembed_hash": unembed_hash(model)}
    (folder / "config.json").write_text(json.dumps(config))
    zeros = {f"{n}.{part}": torch.zeros(shape) for n in range(4) for part, shape in _SHAPES}
    torch.save(zeros, folder / "params.pt")
    return folder


_SHAPES: list[tuple[str, tuple[int, ...]]] = [("weight", (32, 32)), ("bias", (32,))]


def test_the_logit_lens_in_all_forms(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["lens", "logit", TEXT, "--model", str(tiny_folder), "--layers", "0-2,4"]
    done = run([*base, "--top-k", "2"], capsys)
    assert done.code == 0
    assert "logit lens" in done.out
    assert [line[0] for line in done.out.splitlines() if line[:1].isdigit()][:4] == ["4", "2", "1", "0"]
    assert "warning: no BOS: position 0 is an attention sink" in done.err
    document = json.loads(run([*base, "--format", "json"], capsys).out)
    assert sorted({cell["layer"] for cell in document["cells"]}) == [0, 1, 2, 4]
    assert document["lens"] is None
    assert run([*base, "--format", "csv"], capsys).out.startswith(
        "layer,position,id,token,entropy,kl,rank,agrees,top_1"
    )
    assert document["spec"] == {"layers": [0, 1, 2, 4], "top_k": 1, "bos": "auto", "lens": None}
    done = run([*base, "--out", str(tmp_path / "lens.json")], capsys)
    assert done.out == ""
    assert "written as json, by its ending" in done.err
    written = json.loads((tmp_path / "lens.json").read_text())
    assert [cell["top"][0]["token_id"] for cell in written["cells"]] == [
        cell["top"][0]["token_id"] for cell in document["cells"]
    ]


def test_a_table_or_csv_in_a_file_has_its_provenance_beside_it(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["lens", "logit", TEXT, "--model", str(tiny_folder), "--layers", "2,4"]
    document = json.loads(run([*base, "--format", "json"], capsys).out)
    del document["cells"]
    assert "position 0 is an attention sink" in document["cautions"][0]
    for name in ("lens.csv", "lens.txt", "lens.json"):
        assert run([*base, "--out", str(tmp_path / name)], capsys).code == 0
        meta = tmp_path / f"{name}.meta.json"
        assert meta.exists() == (name != "lens.json"), "the document has it"
        assert not meta.exists() or json.loads(meta.read_text()) == document
    assert (tmp_path / "lens.csv").read_text().startswith("layer,position")
    assert "logit lens" in (tmp_path / "lens.txt").read_text()


def test_a_tuned_lens_is_trained_once_and_then_kept(
    tiny_folder: Path, home: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["lens", "tuned", TEXT, "--model", str(tiny_folder), "--text", str(prose), "--format", "json"]
    saved = tmp_path / "lens.safetensors"
    first = run([*base, "--save", str(saved)], capsys)
    assert first.code == 0, first.err
    assert "training a tuned lens for" in first.err
    assert "TFLOP, some" in first.err
    (kept,) = (home / "lenses").glob("*.safetensors")
    assert f"the lens is in {kept}" in first.err
    assert f"the lens is also in {saved}" in first.err
    digest = Mappings.load(saved).digest
    assert json.loads(first.out)["lens"]["digest"] == digest == Mappings.load(kept).digest
    again = run(base, capsys)
    assert "training" not in again.err
    assert json.loads(again.out)["cells"] == json.loads(first.out)["cells"]
    given = run(["lens", "tuned", TEXT, "--model", str(tiny_folder), "--lens", str(saved), "--layers", "1"], capsys)
    assert f"tuned lens {digest[:8]}" in given.out
    assert "training" not in given.err


def test_a_published_lens_is_read(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Translators of zeros add nothing: what they read is the logit lens."""
    folder = published(tmp_path / "lens", tiny_folder)
    base = [TEXT, "--model", str(tiny_folder), "--format", "json"]
    tuned, logit = (run(["lens", *args, *base], capsys) for args in (("tuned", "--lens", str(folder)), ("logit",)))
    assert tuned.code == 0, tuned.err
    for a, b in zip(json.loads(tuned.out)["cells"], json.loads(logit.out)["cells"], strict=True):
        assert a["top"][0]["token_id"] == b["top"][0]["token_id"]


def test_what_a_user_may_get_wrong(
    tiny_folder: Path, home: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_folder)]
    refused(["lens", "turned", TEXT, *model], capsys, "there is no 'turned' lens; there are logit and tuned")
    refused(["lens", "logit", "  ", *model], capsys, "TEXT is empty; give at least one word")
    refused(["lens", "logit", " cat" * 200, *model], capsys, "the text has 200 tokens", "context (128). Shorten")
    refused(["lens", "logit", TEXT, *model, "--layers", "9"], capsys, "layer 9 is out of range")
    refused(["lens", "logit", TEXT, *model, "--top-k", "0"], capsys, "top_k is 0")
    refused(["lens", "logit", TEXT, *model, "--lens", "x"], capsys, "is not trained, so that --lens means nothing")
    refused(["lens", "logit", TEXT, *model, "--seed", "0"], capsys, "is not trained, so that --seed means nothing")
    refused(["lens", "tuned", TEXT, *model, "--lens", "x", "--text", "y"], capsys, "give one of them")
    refused(["lens", "logit", TEXT, *model, "--out", str(tmp_path / "no" / "x.json")], capsys, "cannot write")
    refused(["lens", "tuned", TEXT, *model, "--save", str(tmp_path / "no" / "f")], capsys, "there is no such folder")
    refused(["lens", "tuned", TEXT, *model, "--lens", str(tmp_path / "none")], capsys, "cannot be read as mappings")
    refused(["lens", "tuned", TEXT, *model, "--lens", str(prose)], capsys, "no config.json and no params.pt")
    refused(["lens", "tuned", TEXT, *model, "--text", str(tmp_path / "none.txt")], capsys, "cannot read")
    for name in "bc":
        (prose / f"{name}.txt").unlink()
    refused(["lens", "tuned", TEXT, *model, "--text", str(prose)], capsys, "1 sections cannot be split into 3 parts")
    for name in "abc":
        (prose / f"{name}.txt").write_text(f"The capital of Spain is the capital of the country of {name}: a cat.")
    refused(
        ["lens", "tuned", TEXT, *model, "--text", str(prose)], capsys, "are too few for a map of kind affine from 32"
    )
    assert not (home / "lenses").exists() or not list((home / "lenses").iterdir())


def test_a_lens_for_other_weights(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import tiny_model
    from patchscopes.mappings import Mapping, Side

    side = Side.of(tiny_model("mistral"))
    Mappings("tuned", side, side, {(0, 5): Mapping(torch.eye(32), torch.zeros(32))}).save(tmp_path / "f.safetensors")
    arguments = ["lens", "tuned", TEXT, "--model", str(tiny_folder), "--lens", str(tmp_path / "f.safetensors")]
    refused(arguments, capsys, "fitted for the source model mistral with the weights sha256:")
