"""Whole numbers of other libraries are taken; truth values and fractions are not."""

import numpy as np
import pytest
import torch

from patchscopes.numbers import plain, whole


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])])
def test_whole_numbers(value: object) -> None:
    assert type(whole(value)) is int
    assert plain(value) == whole(value) == 3


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float64(3), "3", None, [3], np.array([3, 4]), torch.tensor([3, 4])],
)
def test_all_else(value: object) -> None:
    assert whole(value) is None
    assert plain(value) is value
