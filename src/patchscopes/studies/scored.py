"""What scored results of a study of entities share: the design, the choice, the results, and means over entities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from patchscopes.analysis.intervals import Interval, mean_interval
from patchscopes.results import Results
from patchscopes.studies.choice import Choice
from patchscopes.studies.entities import EntityDesign
from patchscopes.studies.headline import HIT


@dataclass(frozen=True)
class ScoredEntities:
    """The results of all stages; `items` are the design's that have every result of the main stages."""

    design: EntityDesign
    choice: Choice
    results: Mapping[str, Results]
    items: tuple[int, ...]

    @property
    def subjects(self) -> list[str]:
        """The names over which intervals are made, in the order of all arrays."""
        raise NotImplementedError

    @property
    def seed(self) -> int:
        """Of all resampling."""
        return self.design.setup.seed

    def mean(
        self, values: ArrayLike, *, bounds: tuple[float, float] | None = HIT, among: Sequence[int] | None = None
    ) -> Interval:
        """The mean over names (those at `among`) with its interval."""
        subjects = self.subjects if among is None else [self.subjects[k] for k in among]
        return mean_interval(values, subjects, seed=self.seed, bounds=bounds)
