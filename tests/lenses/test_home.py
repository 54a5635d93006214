"""Lenses that are kept: trained once for each weights, text and way of training, by one process."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import tiny_model
from patchscopes.data import DataSet, Passage, load_prose
from patchscopes.errors import OutputError
from patchscopes.lenses import Schedule, TunedOptions, kept_lens, lens_path
from patchscopes.lenses import home as home_module
from patchscopes.models import Model
from patchscopes.settings import Settings

OPTIONS = TunedOptions(layers=(1,), schedule=Schedule(replays=1, looks=1))


@pytest.fixture(scope="module")
def texts() -> DataSet[Passage]:
    """A part of Python's topics."""
    data = load_prose()
    return replace(data, items=tuple(p for p in data.items if len(p.text) > 150)[::20])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home that is not there yet."""
    return Settings(home=tmp_path / "home")


def test_a_lens_is_trained_once(llama: Model, texts: DataSet[Passage], settings: Settings) -> None:
    said: list[str] = []
    path = lens_path(settings, llama, texts, OPTIONS)
    first = kept_lens(llama, texts, settings, OPTIONS, notify=said.append)
    assert said[0].startswith("training a tuned lens for llama: 1 layers")
    assert said[-1] == f"the lens is in {path}"
    said.clear()
    assert kept_lens(llama, texts, settings, OPTIONS, notify=said.append).digest == first.digest
    assert said == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_weights_texts_and_ways_have_lenses_of_their_own(
    llama: Model, texts: DataSet[Passage], settings: Settings
) -> None:
    paths = {
        lens_path(settings, llama, texts, OPTIONS),
        lens_path(settings, tiny_model("mistral"), texts, OPTIONS),
        lens_path(settings, llama, replace(texts, sha256="0" * 64), OPTIONS),
        lens_path(settings, llama, texts, replace(OPTIONS, seed=1)),
        lens_path(settings, llama, texts, replace(OPTIONS, schedule=Schedule(epochs=2))),
    }
    assert len(paths) == 5
    by_range = replace(OPTIONS, layers=range(1, 2))
    assert lens_path(settings, llama, texts, by_range) in paths, "the same layers, however they are named"
    assert lens_path(settings, llama, texts, replace(OPTIONS, tell=print)) in paths, "who hears of it does not matter"


def test_a_damaged_file_is_made_anew(llama: Model, texts: DataSet[Passage], settings: Settings) -> None:
    path = lens_path(settings, llama, texts, OPTIONS)
    digest = kept_lens(llama, texts, settings, OPTIONS).digest
    path.write_bytes(b"half a lens")
    said: list[str] = []
    assert kept_lens(llama, texts, settings, OPTIONS, notify=said.append).digest == digest
    assert "cannot be read as mappings" in said[0]
    assert "It is trained again." in said[0]


def test_one_of_two_trains_and_the_other_waits(
    llama: Model, texts: DataSet[Passage], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, n_trained = threading.Event(), threading.Event(), []
    train = home_module.fit_tuned_lens

    def held(*args: object, **options: object) -> object:
        n_trained.append(1)
        began.set()
        go_on.wait(30)
        return train(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(home_module, "fit_tuned_lens", held)
    first = threading.Thread(target=kept_lens, args=(llama, texts, settings, OPTIONS))
    first.start()
    began.wait(30)
    said: list[str] = []

    def notified(message: str) -> None:
        said.append(message)
        go_on.set()

    kept_lens(llama, texts, settings, OPTIONS, notify=notified)
    first.join()
    assert said == ["waiting for another process that trains this lens"]
    assert len(n_trained) == 1


def test_a_home_that_cannot_be_written_is_told_before_training(
    llama: Model, texts: DataSet[Passage], tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("a file")
    said: list[str] = []
    with pytest.raises(OutputError, match=r"cannot keep a lens in .*PATCHSCOPES_HOME"):
        kept_lens(llama, texts, Settings(home=tmp_path / "home"), OPTIONS, notify=said.append)
    assert said == []
