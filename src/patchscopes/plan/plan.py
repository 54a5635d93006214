"""A Plan, and whoever runs it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from patchscopes.plan.cost import Alone, Cost, Explanation, Speed, alone_of, cost_of
from patchscopes.plan.work import ModelShape, Wave
from patchscopes.spec import Cell, Result


@dataclass(frozen=True, slots=True)
class Plan:
    """The work: distinct `cells`, in waves of groups."""

    cells: tuple[Cell, ...]
    waves: tuple[Wave, ...]
    shape: ModelShape
    source_shape: ModelShape

    @property
    def cost(self) -> Cost:
        """What it takes at the most: texts that end early take less."""
        return cost_of(self.cells, self.waves, self.shape, self.source_shape)

    @property
    def alone(self) -> Alone:
        """What the same cells take one at a time."""
        return alone_of(self.cells)

    def explain(self, speed: Speed) -> Explanation:
        """What it takes, and how long at `speed`, beside one cell at a time; `str()` of it is a table."""
        return Explanation.of(len(self.cells), self.cost, self.alone, speed)


@runtime_checkable
class Runner(Protocol):
    """Anything that turns a Plan into Results."""

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell of `plan`, in any order."""
        ...
