"""Words of many tensors, compared with what they were: by the kernel, and by PyTorch where there is none."""

import pytest
import torch
from torch import Tensor

from patchscopes import kernels
from patchscopes.kernels import samples
from patchscopes.kernels.samples import Sample, Samples


def made(n_words: int, n_places: int, dtype: torch.dtype = torch.int64) -> Sample:
    generator = torch.Generator().manual_seed(n_words)
    words = torch.randint(0, 100, (n_words,), generator=generator).to(dtype)
    places = torch.randint(0, n_words, (n_places,), generator=generator)
    return Sample(words, places, words.index_select(0, places))


def both(monkeypatch: pytest.MonkeyPatch, compared: Samples) -> list[int | None]:
    found = [compared.first_differing()]
    with monkeypatch.context() as patched:
        patched.setattr(samples, "native", lambda: kernels.Native(None, "undone"))
        found.append(compared.first_differing())
    return found


@pytest.mark.parametrize("sizes", [[(1, 1)], [(70, 3), (5000, 900), (9, 200)], [(40, 25)] * 50])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_the_first_sample_that_differs_is_told(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    parts = [made(*size, dtype) for size in sizes]
    compared = Samples(parts)
    assert both(monkeypatch, compared) == [None, None]
    for index in reversed(range(len(parts))):
        for place in (0, -1):
            at = int(parts[index].places[place])
            parts[index].words[at] += 1
            assert both(monkeypatch, compared) == [index, index]
            parts[index].words[at] -= 1
        parts[index].words[int(parts[index].places[0])] += 1  # and stays so: the first of several is told
    assert both(monkeypatch, compared) == [0, 0]


def test_words_that_are_not_sampled_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.arange(10)
    places = torch.tensor([2, 5])
    compared = Samples([Sample(words, places, words[places])])
    words[3] = -1
    assert both(monkeypatch, compared) == [None, None]


def test_no_samples_differ_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    assert both(monkeypatch, Samples([])) == [None, None]
    assert both(monkeypatch, Samples([Sample(torch.arange(3), nothing, nothing)])) == [None, None]


@pytest.mark.parametrize("places", [[-1], [3], [0, 10**12]])
def test_places_beyond_the_words_are_refused(places: list[int]) -> None:
    at = torch.tensor(places)
    with pytest.raises(ValueError, match="of 3 words"):
        Samples([Sample(torch.arange(3), at, torch.zeros_like(at))])


@pytest.mark.parametrize(
    ("words", "places", "before"),
    [
        (torch.arange(4).view(2, 2), torch.tensor([0]), torch.tensor([0])),
        (torch.arange(4), torch.tensor([0, 1]), torch.tensor([0])),
        (torch.arange(4), torch.tensor([0], dtype=torch.int32), torch.tensor([0])),
        (torch.arange(4), torch.tensor([0]), torch.tensor([0.0])),
    ],
)
def test_what_does_not_belong_together_is_refused(words: Tensor, places: Tensor, before: Tensor) -> None:
    with pytest.raises(ValueError, match="a sample was given"):
        Sample(words, places, before)
