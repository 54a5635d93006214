"""Does it matter how many pairs a token-identity prompt has, and which words? Prompts of 1 to 10 pairs, drawn anew.

Axes: item (a place of its own passage), prompt (a number of pairs and a draw of words), ℓ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import mean_interval
from patchscopes.data import Exclusion
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.next_token.design import DRAWS, Design
from patchscopes.studies.next_token.readings import Readings, agreed
from patchscopes.studies.report import Finding
from patchscopes.studies.texts import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """Precision (item, prompt), a mean over the ℓ of the stage: of the cells, and of other passages' states there.

    `prompts` are (number of pairs, draw). `items` are numbers of places.
    """

    design: Design
    prompts: tuple[tuple[int, int], ...]
    items: tuple[int, ...]
    own: Floats
    shuffled: Floats
    excluded: tuple[Exclusion, ...]

    @property
    def subjects(self) -> list[str]:
        """The passages of `items`."""
        return [self.design.places[item].passage for item in self.items]

    @property
    def numbers(self) -> list[int]:
        """The numbers of pairs."""
        return sorted({n for n, _ in self.prompts})

    def of(self, values: Floats, n: int) -> Floats:
        """`values` with `n` pairs, a mean over draws: (item)."""
        columns = [k for k, (pairs, _) in enumerate(self.prompts) if pairs == n]
        mean: Floats = values[:, columns].mean(axis=1)
        return mean


def run_pairs(readings: Readings) -> Paired:
    """Run the prompts on the places that are scored."""
    design = readings.design
    results = design.setup.run(design.pairs())
    layers = [(layer, layer) for layer in design.paired_layers]
    tables = [Table.of(results, prompt.label, len(design.paired)) for prompt in design.pair_prompts.values()]
    missing = {item: reason for table in tables for item, reason in table.missing.items()}
    scored = set(readings.items)
    items = [item for item, place in enumerate(design.paired) if place in scored and item not in missing]
    own = [table.own(agreed, items, layers).mean(axis=1) for table in tables]
    shuffled = [table.drawn("shuffled", agreed, items, layers, DRAWS).mean(axis=(1, 2)) for table in tables]
    excluded = [
        Exclusion(design.places[design.paired[item]].passage, f"pairs: {reason.splitlines()[0]}", "position")
        for item, reason in missing.items()
    ]
    return Paired(
        design,
        tuple(design.pair_prompts),
        tuple(design.paired[item] for item in items),
        np.stack(own, axis=1),
        np.stack(shuffled, axis=1),
        tuple(excluded),
    )


def pair_findings(paired: Paired) -> list[Finding]:
    """Each number of pairs, beside other passages' states; and what more pairs add, Holm over both ways to say it."""
    if not paired.items:
        return []
    seed, subjects = paired.design.setup.seed, paired.subjects
    found = []
    for n in paired.numbers:
        own = paired.of(paired.own, n)
        about = f"precision@1 of token identity with {n} pair{'s' * (n > 1)} of random words, mean over ℓ and draws"
        found.append(Finding.of(f"pairs/{n}", mean_interval(own, subjects, seed=seed, bounds=HIT), about))
        left = own - paired.of(paired.shuffled, n)
        interval = mean_interval(left, subjects, seed=seed, bounds=DIFFERENCE, own=own)
        found.append(Finding.of(f"pairs/{n}", interval, f"{about}, minus shuffled", control="shuffled"))
    if len(paired.numbers) < 2:
        return found
    fewest, most = paired.numbers[0], paired.numbers[-1]
    added = {
        "pairs-added": (
            paired.of(paired.own, most) - paired.of(paired.own, fewest),
            f"precision@1 with {most} pairs minus with {fewest}",
        ),
        "pairs-doubled": (_per_doubling(paired), "precision@1 gained by each doubling of the pairs, least squares"),
    }
    corrected = holm([sign_flip(values, subjects, seed=seed).p for values, _ in added.values()])
    for (name, (values, about)), p in zip(added.items(), corrected, strict=True):
        interval = mean_interval(values, subjects, seed=seed, bounds=None)
        found.append(Finding.of(name, interval, f"{about}; p: Holm over both ways to say it", control="fewer", p=p))
    return found


def _per_doubling(paired: Paired) -> Floats:
    """The slope of each item's precision over log2 of the number of pairs."""
    x = np.log2(paired.numbers)
    y = np.stack([paired.of(paired.own, n) for n in paired.numbers], axis=1)
    slope: Floats = (y * (x - x.mean())).sum(axis=1) / ((x - x.mean()) ** 2).sum()
    return slope


def pair_table(paired: Paired) -> pd.DataFrame:
    """A prompt a line: its words, its precision with the interval, what shuffled states have."""
    rows = []
    for k, (n, draw) in enumerate(paired.prompts):
        if not paired.items:
            break
        own, seed = paired.own[:, k], paired.design.setup.seed
        i = mean_interval(own, paired.subjects, seed=seed, bounds=HIT)
        rows.append(
            {
                "pairs": n, "draw": draw, "words": " ".join(paired.design.words[draw][:n]), "estimate": i.estimate,
                "low": i.low, "high": i.high, "shuffled": float(paired.shuffled[:, k].mean()),
                "n_items": i.n_items, "n_subjects": i.n_subjects,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame) -> float:
    """How far the prompts of one number of pairs lie apart, the highest minus the lowest: a mean over the numbers."""
    by_number = table.groupby("pairs").estimate
    return float((by_number.max() - by_number.min()).mean())


def draws_of(paired: Paired) -> Sequence[int]:
    """The draws that there are of the largest number of pairs."""
    return [draw for n, draw in paired.prompts if n == paired.numbers[-1]]
