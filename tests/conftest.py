"""Models that tests share: a tiny random one of each family, and the registry's real ones."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import families
from patchscopes.models import Model, wrap_in_memory


@cache
def tiny_model(family: str, *, add_bos: bool = False) -> Model:
    """A tiny random model of `family`, biases and norms perturbed, with the tests' own tokenizer."""
    return wrap_in_memory(families.build(family), families.tiny_tokenizer(add_bos=add_bos))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real models first: workers are given whole files, and theirs are few and long; last, one worker would wait."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for tiny models, which threads only hinder; all of them for real ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("real") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Model]:
    """`tiny("llama")` is a tiny random Llama."""
    return tiny_model


@pytest.fixture(scope="session")
def llama() -> Model:
    """A tiny random Llama, which adds no BOS."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def smol() -> Model:
    """The default registry model, pulled where it is not there yet."""
    import patchscopes

    return patchscopes.load("smollm2-135m")


@pytest.fixture(scope="session")
def gemma() -> Model:
    """The other registry model."""
    import patchscopes

    return patchscopes.load("gemma3-270m")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    families.build("llama").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder
