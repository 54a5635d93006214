"""How a study is run: its options, its runner, what it keeps, and what it says before it starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from patchscopes.errors import OptionError, OutputError
from patchscopes.mappings import Mapping, Mappings, Side, Transfer
from patchscopes.models import Model
from patchscopes.plan import Plan
from patchscopes.reference import Reference
from patchscopes.settings import Settings
from patchscopes.spec import InspectionPrompt, Result, Source, Sweep
from patchscopes.studies import STUDIES, find_study, setup
from patchscopes.studies.cross_model import study, usual_target
from patchscopes.studies.setup import Setup, Stage, StudyOptions
from patchscopes.trust import TrustedEngine
from study_cases import SPEED


class Counting:
    """The reference, which counts the cells that it is given."""

    def __init__(self) -> None:
        self.n_cells = 0

    def __call__(self, model: Model) -> "Counting":
        self.reference = Reference(model)
        return self

    def run(self, plan: Plan) -> Iterator[Result]:
        self.n_cells += len(plan.cells)
        return self.reference.run(plan)


def stage(model: Model, name: str = "first", **changes: Any) -> Stage:
    sources = (Source("go to Spain"), Source("say the cat"))
    decoding = Setup(model).decoding(2)
    options = {"target_layers": (1,), "decoding": decoding, "controls": ("unpatched",), **changes}
    return Stage(name, Sweep(sources, (InspectionPrompt("the capital of {} is"),), (0, 1), **options))


def test_every_study_has_a_module_and_an_unknown_one_names_them() -> None:
    for name in STUDIES:
        assert callable(find_study(name).run)
    with pytest.raises(OptionError, match="there is no study 'entity'; the studies are entity-resolution"):
        find_study("entity")


def test_what_is_no_option_or_no_model_is_refused(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no option kick, quik; its options are data, quick, out, runner"):
        Setup.of(llama, {"quik": True, "kick": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(OptionError, match=r"a model from load\(\), not a str: 'llama'"):
        unwrap(Setup.of.__func__)(Setup, "llama", {})  # without the check of types that only tests have
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file is a file; a study needs a directory of its own"):
        Setup.of(llama, {"out": tmp_path / "file"})


def test_options_are_taken_as_given_and_paths_become_paths(llama: Model, tmp_path: Path) -> None:
    given: StudyOptions = {"data": "a", "out": str(tmp_path), "quick": True, "seed": 4, "memory_bytes": 2**30}
    made = Setup.of(llama, given)
    assert (made.data, made.out, made.quick, made.seed) == (Path("a"), tmp_path, True, 4)
    assert made.budget().memory_bytes == 2**30
    assert made.runner is TrustedEngine
    empty = Setup.of(llama, {"data": None, "out": None})
    assert (empty.data, empty.out) == (None, None)
    assert empty.budget().memory_bytes > 0
    assert Setup.of(llama, {}).decoding(7).eos_ids == tuple(sorted(llama.eos_ids))


def called(model: Model, name: str) -> Model:
    """The same, asked for by another name."""
    other = copy(model)
    other.id = name
    return other


@pytest.mark.parametrize(
    ("name", "target"),
    {
        "smollm2-135m": "gemma3-270m",
        "./smollm2-135m/": "gemma3-270m",
        "HuggingFaceTB/SmolLM2-135M": "gemma3-270m",
        "/models/SmolLM2-135M-Instruct.Q4_1.gguf": "gemma3-270m",
        "gemma3-270m": "smollm2-135m",
        "google/gemma-3-270m": "smollm2-135m",
        "a/folder": "smollm2-135m",
    }.items(),
)
def test_the_usual_target_is_a_model_of_the_registry_that_the_source_is_not(
    llama: Model, tmp_path: Path, name: str, target: str
) -> None:
    assert usual_target(called(llama, name), Settings(tmp_path)) == target


def test_the_usual_target_has_not_the_weights_of_the_source(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"smollm2-135m": llama.fingerprint}
    monkeypatch.setattr(study, "pulled_weights", lambda name, _: weights.get(name))
    assert usual_target(called(llama, "a/folder"), Settings(tmp_path)) == "gemma3-270m"
    with pytest.raises(OptionError, match=r"each of smollm2-135m, gemma3-270m is gemma3-270m/, by name or by weights"):
        usual_target(called(llama, "gemma3-270m/"), Settings(tmp_path))


def test_a_target_of_the_same_weights_is_refused(llama: Model, tiny: Callable[[str], Model]) -> None:
    same = (
        rf"states of a/source into another model, and b/target is the same: both have the weights {llama.fingerprint}"
    )
    with pytest.raises(OptionError, match=same):
        Setup.across(called(llama, "a/source"), {"target_model": called(llama, "b/target")})
    other = tiny("qwen3")
    assert Setup.across(llama, {"target_model": other}).target is other


def test_memory_is_that_of_the_device_that_is_written_on(
    llama: Model, tiny: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two models are on two devices, the second runs the prompts and keeps keys and values."""
    other = tiny("qwen3")
    devices = {llama: torch.device("cpu"), other: torch.device("meta")}
    monkeypatch.setattr(Model, "device", property(devices.__getitem__))
    free = {torch.device("cpu"): 2**20, torch.device("meta"): 2**30}
    monkeypatch.setattr(setup, "default_memory_bytes", free.__getitem__)
    assert Setup.of(llama, {}).budget().memory_bytes == 2**20
    assert Setup.across(llama, {"target_model": other}).budget().memory_bytes == 2**30


def test_a_stage_is_kept_and_its_second_run_runs_no_cell(llama: Model, tmp_path: Path) -> None:
    counting = Counting()
    first = Setup.of(llama, {"out": tmp_path, "runner": counting})
    rows = list(first.run(stage(llama)))
    assert counting.n_cells == 5  # two sources at two layers, and the prompt as it is
    assert first.counts == {"first": {"ok": 5}}
    assert (tmp_path / "runs" / "first" / "manifest.json").is_file()
    again = Setup.of(llama, {"out": tmp_path, "runner": counting})
    assert list(again.run(stage(llama))) == rows
    assert again.counts == first.counts
    assert counting.n_cells == 5, "no cell was run again"
    again.run(stage(llama, "second"))
    assert counting.n_cells == 10, "another stage is another run"
    Setup.of(llama, {"runner": counting}).run(stage(llama))
    assert counting.n_cells == 15, "without a directory nothing is kept"


def test_the_runner_given_is_the_one_used(llama: Model) -> None:
    counting = Counting()
    watched: list[Any] = []

    @contextmanager
    def watch(session: Any) -> Iterator[Any]:
        yield watched.append

    made = Setup.of(llama, {"runner": counting, "watch": watch})
    rows = list(made.run(stage(llama)))
    assert counting.n_cells == 5
    assert sorted(watched, key=rows.index) == rows
    assert made.runner_name == "counting"
    engine = Setup.of(llama, {"runner": TrustedEngine})
    assert engine.runner_name == "engine"
    assert [row.token_ids for row in engine.run(stage(llama))] == [row.token_ids for row in rows]


def test_the_cost_is_told_before_anything_runs(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
    counting, told = Counting(), []
    made = Setup.of(llama, {"out": tmp_path, "runner": counting, "tell": told.append})
    made.announce([stage(llama), stage(llama, "second", controls=())])
    assert len(told) == 1
    assert told[0].startswith("2 stages, 9 cells, about ")
    assert f"what {tmp_path / 'runs'} already holds is not run again" in told[0]
    assert counting.n_cells == 0
    assert not list(tmp_path.iterdir()), "and nothing is written"
    quiet = Setup.of(llama, {"tell": told.append})
    quiet.announce([stage(llama)])
    assert told[1].endswith(" here")
    quiet.announce([stage(llama)], fitting_s=7200.0)
    assert "1 stages, 5 cells and mappings to fit (2 h 0 min), about 2 h 0 min here" in told[2]


def maps(model: Model, number: float) -> Mappings:
    width = model.d_model
    return Mappings(
        "affine", Side.of(model), Side.of(model), {(0, 1): Mapping(torch.eye(width) * number, torch.ones(width))}
    )


def test_mappings_are_made_once_for_what_decides_them(llama: Model, tmp_path: Path) -> None:
    setup = Setup.of(llama, {"out": tmp_path})
    made = [setup.fitted("f", {"seed": 0, "sizes": (1, 2)}, lambda: maps(llama, 2.0)) for _ in "ab"]
    assert made[0].digest == made[1].digest
    kept = Setup.of(llama, {"out": tmp_path}).fitted("f", {"sizes": [1, 2], "seed": 0}, lambda: maps(llama, 3.0))
    assert kept.digest == made[0].digest, "the same in another session, and not made again"
    other = setup.fitted("f", {"seed": 1, "sizes": (1, 2)}, lambda: maps(llama, 3.0))
    assert other.digest != kept.digest
    nowhere = Setup.of(llama, {}).fitted("f", {"seed": 1}, lambda: maps(llama, 2.0))
    assert nowhere.digest == kept.digest


def test_a_stage_goes_through_its_transfer(llama: Model, tmp_path: Path) -> None:
    setup = Setup.of(llama, {"out": tmp_path})
    plain, mapped = stage(llama, "plain"), stage(llama, "mapped", controls=("zero",))
    transfer = Transfer(llama, llama, Mappings("affine", Side.of(llama), Side.of(llama), {
        (layer, 1): Mapping(torch.eye(llama.d_model) * 2, torch.ones(llama.d_model)) for layer in (0, 1)
    }))  # fmt: skip
    results = setup.run(replace(mapped, transfer=transfer))
    assert {row.mapping for row in results} == {transfer.mappings.label((layer, 1)) for layer in (0, 1)}  # type: ignore[union-attr]
    assert {row.mapping for row in setup.run(plain)} == {None}
    assert results.spec["mapping"] == transfer.mappings.digest  # type: ignore[union-attr]
