"""A score beside its controls: what nobody hit is not shown as a sure loss, and the verdict needs all four."""

import numpy as np
import pytest

from patchscopes.studies.headline import NEEDED, beside, holm_over, verdict
from patchscopes.studies.report import Finding

SUBJECTS = [str(k) for k in range(10)]
ABOUT = "hits", "ℓ 1 → ℓ* 1"


def test_a_hit_that_nobody_had_is_allowed_for() -> None:
    """Three of ten lose 0.2 to the control: up to 30.85 % of all could have had a hit of their own."""
    rate, left = beside(
        "rate", np.zeros(10), {"shuffled": np.array([0.2] * 3 + [0.0] * 7)}, SUBJECTS, seed=0, about=ABOUT
    )
    assert (rate.estimate, rate.high) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert left.estimate == pytest.approx(-0.06)
    assert left.low < 0 < left.high


@pytest.mark.parametrize("failing", [None, *NEEDED])
def test_the_verdict_needs_all_four_controls(failing: str | None) -> None:
    controls = {name: np.ones(10) if name == failing else np.zeros(10) for name in NEEDED}
    found = beside("rate", np.ones(10), controls, SUBJECTS, seed=0, about=ABOUT)
    said = verdict({(finding.name, finding.control): finding for finding in found}, "rate")
    assert ("does not stand" in said) == (failing is not None)
    assert failing is None or f"beside {failing} the" in said


def test_only_the_family_is_corrected() -> None:
    found = [Finding(name, 0.0, 0.0, 0.0, 1, 1, None, "", p) for name, p in (("a", 0.01), ("b", 0.04), ("c", 0.03))]
    assert [f.p for f in holm_over(found, lambda f: f.name != "c")] == [0.02, 0.04, 0.03]
    assert holm_over(found, lambda f: False) == found
