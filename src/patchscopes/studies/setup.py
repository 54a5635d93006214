"""How a study is run: its model, its runner, where its runs are kept, and who is told of what it costs."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TypedDict, cast

from patchscopes.engine import default_memory_bytes
from patchscopes.errors import OptionError, OutputError
from patchscopes.mappings import Mappings, Transfer
from patchscopes.models import Model
from patchscopes.numbers import plain
from patchscopes.plan import Budget, Runner, Speed, duration
from patchscopes.resolve import resolve
from patchscopes.results import Results
from patchscopes.run import Inspection, Session, collector_paused
from patchscopes.spec import Decoding, Row, Sweep
from patchscopes.speed import measure_speed
from patchscopes.store import run_folder
from patchscopes.trust import TrustedEngine

Watch = Callable[[Session], AbstractContextManager[Callable[[Row], None]]]


@contextmanager
def unwatched(_: Session) -> Iterator[Callable[[Row], None]]:
    """Watches nothing."""
    yield lambda _: None


class StudyOptions(TypedDict, total=False):
    """Options of every study's `run`.

    data: a file or folder with data of your own, in one of the forms of docs/data.md; None takes the study's own.
    quick: fewer items and layers, for a first look: minutes on two cores. The report says what was left out.
    out: a directory for the report and for the runs behind it, which are resumed from there; None writes nothing.
    runner: what runs the cells, the engine unless given.
    seed: of splits, draws and resampling.
    memory_bytes: what a run may take beside the weights; half of what is free where None.
    watch: is given each session before it runs, and the rows that finish.
    tell: is told, in words, what is about to run and what it costs.
    target_model: the model that states are written into, in studies across models.
    variant: a name for what is attached to the model, as `patchscopes.load` has it.
    """

    data: str | PathLike[str] | None
    quick: bool
    out: str | PathLike[str] | None
    runner: Callable[[Model | Transfer], Runner]
    seed: int
    memory_bytes: int | None
    watch: Watch
    tell: Callable[[str], None]
    target_model: Model | None
    variant: str | None


def at_end(text: str, phrase: str) -> str:
    """`at=` for the phrase that `text` ends with, also where it stands in the text before that."""
    if text.find(phrase) + len(phrase) == len(text):
        return f"text:{phrase}"
    return rf"re:{re.escape(phrase)}\Z"  # "Nobody in the room had heard of hear"


def _check_model(model: object) -> None:
    if not isinstance(model, Model):
        raise OptionError(f"the first argument is a model from load(), not a {type(model).__name__}: {model!r}.")


@dataclass(frozen=True, slots=True)
class Stage:
    """One sweep of a study; `name` is the folder that keeps its run. `times`: as often one like it may have to run.

    `transfer` is what states go through; None leaves them as they are, within the study's model.
    """

    name: str
    sweep: Sweep
    times: int = 1
    transfer: Transfer | None = None


@dataclass(frozen=True)
class Setup:
    """A study's model and options (see `StudyOptions`), and what it has run so far."""

    model: Model
    data: Path | None = None
    quick: bool = False
    out: Path | None = None
    runner: Callable[[Model | Transfer], Runner] = TrustedEngine
    seed: int = 0
    memory_bytes: int | None = None
    watch: Watch = unwatched
    tell: Callable[[str], None] = lambda _: None
    target: Model | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of rows, by stage and status
    kept: dict[str, int] = field(default_factory=dict)  # of rows that were there before, by stage

    @classmethod
    def of(cls, model: Model, options: StudyOptions) -> "Setup":
        """The setup that `options` describe, of a study within one model. Raises OptionError for an unknown one."""
        _check_model(model)
        setup = cls._of(model, options)
        if setup.target is not None:
            raise OptionError(
                f"this study reads and writes within one model; target_model ({setup.target.id}) is for cross-model."
            )
        return setup

    @classmethod
    def across(cls, model: Model, options: StudyOptions) -> "Setup":
        """As `of`, for a study that writes states of `model` into another.

        Raises OptionError where none is given, and where it has the same weights.
        """
        _check_model(model)
        setup = cls._of(model, options)
        if not isinstance(setup.target, Model):
            raise OptionError(
                f"this study writes states of {model.id} into another model, and target_model is {setup.target!r}: "
                "give one from load()."
            )
        if setup.target.fingerprint == model.fingerprint:
            raise OptionError(
                f"this study writes states of {model.id} into another model, and {setup.target.id} is the same: both "
                f"have the weights {model.fingerprint}. Give another as target_model."
            )
        return setup

    @classmethod
    def _of(cls, model: Model, options: StudyOptions) -> "Setup":
        if unknown := sorted(set(options) - set(StudyOptions.__annotations__)):
            known = ", ".join(StudyOptions.__annotations__)
            raise OptionError(f"a study has no option {', '.join(unknown)}; its options are {known}.")
        # None is an option's default, and whole numbers are plain ones: what is hashed must look the same everywhere.
        options = cast(StudyOptions, {name: plain(value) for name, value in options.items() if value is not None})
        data, out = options.get("data"), options.get("out")
        setup = cls(
            model.called(options.get("variant")),
            data=None if data is None else Path(data),
            quick=options.get("quick", False),
            out=None if out is None else run_folder(out),
            runner=options.get("runner", TrustedEngine),
            seed=options.get("seed", 0),
            memory_bytes=options.get("memory_bytes"),
            watch=options.get("watch", unwatched),
            tell=options.get("tell", lambda _: None),
            target=options.get("target_model"),
        )
        if setup.out is not None and setup.out.exists() and not setup.out.is_dir():
            raise OutputError(f"{setup.out} is a file; a study needs a directory of its own.")
        return setup

    @property
    def runner_name(self) -> str:
        """What runs the cells, as provenance has it."""
        return str(getattr(self.runner, "name", getattr(self.runner, "__name__", type(self.runner).__name__))).lower()

    @property
    def written(self) -> Model:
        """The model that states are written into, which says what is read."""
        return self.target or self.model

    def decoding(self, max_new_tokens: int, *, of: Model | None = None) -> Decoding:
        """Greedy, until so many tokens or the own end of the model that is written into, or of the one given."""
        return Decoding(max_new_tokens=max_new_tokens, eos_ids=tuple(sorted((of or self.written).eos_ids)))

    def budget(self) -> Budget:
        """What a run may take now."""
        given = self.memory_bytes
        return Budget(given if given is not None else default_memory_bytes(self.written.device))

    def prepare(self, stage: Stage) -> Inspection:
        """The stage, resolved. Raises a SpecError where it cannot run."""
        folder = None if self.out is None else self.out / "runs" / stage.name
        transfer = stage.transfer or Transfer.of(self.model)
        transfer.current(content=False)  # its content is looked at when it runs
        sweep = transfer.named(stage.sweep)
        with collector_paused():
            resolved = resolve(transfer, sweep)
        return Inspection(transfer, sweep, resolved, self.runner, self.runner_name, self.budget(), folder)

    def fitted(self, name: str, key: Mapping[str, object], make: Callable[[], Mappings]) -> Mappings:
        """The mappings of that name: those in `out` where they were made for `key`, else made, and kept there.

        `key` is plain JSON that says all that decides them: texts by their hash, sizes, seed.
        """
        path = None if self.out is None else self.out / "mappings" / f"{name}.safetensors"
        wanted = json.loads(json.dumps(key))
        if path is not None and path.is_file():
            kept = Mappings.load(path)
            if kept.fitted.get("key") == wanted:
                return kept
        made = make()
        made = replace(made, fitted={**made.fitted, "key": wanted})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.save(path)
        return made

    def run(self, stage: Stage) -> Results:
        """Run what remains of the stage, and return all of its rows."""
        inspection = self.prepare(stage)
        self.tell(f"stage {stage.name}")
        rows: dict[int, Row] = {}
        with collector_paused(), inspection.session() as session:
            rows.update(session.kept())
            self.kept[stage.name] = len(rows)
            with self.watch(session) as advance:
                for index, row in session.rows():
                    rows[index] = row
                    advance(row)
        results = inspection.results(rows)
        self.counts[stage.name] = dict(results.counts)
        return results

    def announce(self, stages: Sequence[Stage], *, less: str = "", fitting_s: float = 0.0) -> None:
        """Say what `stages` cost here, all together, before any starts; `less` says when it will be less.

        `fitting_s` is what mappings take that are fitted before.
        """
        n_cells, seconds = 0, 0.0
        speeds: dict[int, Speed] = {}
        for stage in stages:
            inspection = self.prepare(stage)
            plan, runs = inspection.plan, inspection.target
            if id(runs) not in speeds:
                n_rows = max((group.n_rows for wave in plan.waves for group in wave.groups), default=1)
                speeds[id(runs)] = measure_speed(runs, n_rows=n_rows)
            n_cells += len(plan.cells) * stage.times
            seconds += plan.explain(speeds[id(runs)]).seconds * stage.times
        kept = "" if self.out is None else f"; what {self.out / 'runs'} already holds is not run again"
        n_stages = sum(stage.times for stage in stages)
        fits = f" and mappings to fit ({duration(fitting_s)})" if fitting_s else ""
        cost = f"{n_stages:,} stages, {n_cells:,} cells{fits}, about {duration(seconds + fitting_s)} here"
        self.tell(f"at most {cost} ({less}){kept}" if less else f"{cost}{kept}")
