"""Paired tests on simulated data: at the null they reject as rarely as they say."""

import gc

import numpy as np
import pytest
from scipy import stats

from patchscopes import errors
from patchscopes.analysis.comparisons import holm, mcnemar, sign_flip


def test_at_the_null_five_percent_are_rejected() -> None:
    """Subjects of six items that agree among themselves; a test over items would reject every second time."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(300):
        own = rng.normal(size=25)
        differences = np.repeat(own, 6) + rng.normal(size=150) * 0.1
        p.append(sign_flip(differences, [k // 6 for k in range(150)], seed=1).p)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    test = sign_flip(rng.normal(0.8, 1, 40), range(40), seed=1)
    assert test.p < 0.01
    assert test.difference == pytest.approx(0.8, abs=0.4)


def test_small_samples_are_exact() -> None:
    """All of 2⁵ flips: five positive differences are the most extreme of 32, on either side."""
    assert sign_flip([1, 2, 3, 4, 5], range(5), seed=0).p == pytest.approx(2 / 32)


def test_subjects_are_flipped_whole() -> None:
    same = sign_flip([1.0] * 10, ["a"] * 5 + ["b"] * 5, seed=0)
    assert same.n_subjects == 2
    assert same.p == pytest.approx(2 / 4)


def test_no_difference_at_all() -> None:
    assert sign_flip([0.0, 0.0], ["a", "b"], seed=0).p == 1.0


def test_mcnemar_is_the_binomial_of_the_discordant() -> None:
    first = [1] * 9 + [0] * 2 + [1] * 5
    second = [0] * 9 + [1] * 2 + [1] * 5
    test = mcnemar(first, second)
    assert test.p == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert test.difference == pytest.approx(7 / 16)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.6, 0.6]) == [1.0, 1.0, 1.0]


def test_holm_leaves_garbage_collection_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays frozen, and nothing thaws that the program had frozen itself."""
    during: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda *_: during.append(gc.get_freeze_count()))
    gc.unfreeze()
    holm([0.01, 0.04])
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert during
    assert all(during), "what is there is not walked"
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        holm([0.01, 0.04])
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(errors.OptionError, match="one number per item"):
        sign_flip([1.0], ["a", "b"], seed=0)
    with pytest.raises(errors.OptionError, match="one of each per item"):
        mcnemar([1, 0], [1])


def test_one_subject_alone_shows_nothing() -> None:
    found = sign_flip([0.5, 1.0], ["a", "a"], seed=0)
    assert (found.difference, found.p, found.n_subjects, found.method) == (0.75, 1.0, 1, "none")
