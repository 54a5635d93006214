"""A score at one placement, and what is left of it beside each control (rule 17)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import mean_interval
from patchscopes.studies.report import Finding

HIT = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
NEEDED = ("unpatched", "random", "random-state", "shuffled")  # rule 17: beside each of these a finding must stand


def beside(
    name: str,
    own: NDArray[Any],
    controls: Mapping[str, NDArray[Any]],
    subjects: Sequence[str],
    *,
    seed: int,
    about: tuple[str, str],
) -> list[Finding]:
    """The mean score, and its difference to each control, with Holm's correction over them.

    `own` and each control are (item); `about` is what is scored, and where.
    """
    label, where = about
    rate = mean_interval(own, subjects, seed=seed, bounds=HIT)
    found = [Finding.of(name, rate, f"{label} at {where}")]
    for control, values in controls.items():
        said = f"{label}, minus that with {control}, at {where}; p by sign flips, Holm over the controls"
        found.append(minus((name, control), own, values, subjects, seed=seed, about=said))
    return holm_over(found, lambda f: f.control is not None)


def minus(
    key: tuple[str, str], own: NDArray[Any], other: NDArray[Any], subjects: Sequence[str], *, seed: int, about: str
) -> Finding:
    """The mean of `own` minus `other` (item), with its interval over subjects, and p by sign flips, not corrected.

    `key` is the finding's name, and the control that `other` is of.
    """
    left, (name, control) = own - other, key
    interval = mean_interval(left, subjects, seed=seed, bounds=DIFFERENCE, own=own)
    return Finding.of(name, interval, about, control=control, p=sign_flip(left, subjects, seed=seed).p)


def holm_over(findings: Sequence[Finding], family: Callable[[Finding], bool]) -> list[Finding]:
    """The findings; the p of those of `family`, which all have one, with Holm's correction over them."""
    places = [k for k, finding in enumerate(findings) if family(finding)]
    p_values = [p for k in places if (p := findings[k].p) is not None]
    corrected = dict(zip(places, holm(p_values), strict=True))
    return [replace(finding, p=corrected.get(k, finding.p)) for k, finding in enumerate(findings)]


def failing(by: Mapping[tuple[str, str | None], Finding], name: str, needed: Sequence[str] = NEEDED) -> list[str]:
    """The controls that a finding does not stand beside, of those that it has to."""
    return [control for control in needed if not by[name, control].stands]


def verdict(by: Mapping[tuple[str, str | None], Finding], name: str, needed: Sequence[str] = NEEDED) -> str:
    """Whether the finding stands beside all that it has to, as a sentence."""
    if not (lacking := failing(by, name, needed)):
        *most, last = needed
        return f"The finding stands: the interval is above 0 beside each of {', '.join(most)} and {last}."
    return f"**The finding does not stand**: beside {', '.join(lacking)} the interval reaches 0 or below."
