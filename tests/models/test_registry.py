import ast
import re
import sys
from pathlib import Path

import pytest

from patchscopes.models import registry
from patchscopes.models.registry import DEFAULT_MODEL, REGISTRY, RegistryEntry
from patchscopes.settings import Settings

SHA256 = re.compile(r"[0-9a-f]{64}")
ENTRIES = pytest.mark.parametrize("entry", REGISTRY.values(), ids=list(REGISTRY))


def test_names_are_those_of_the_entries_and_hold_the_default() -> None:
    assert [entry.name for entry in REGISTRY.values()] == list(REGISTRY)
    assert DEFAULT_MODEL in REGISTRY


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        REGISTRY["mine"] = REGISTRY[DEFAULT_MODEL]  # type: ignore[index]


@ENTRIES
def test_every_file_is_fixed_by_a_hash(entry: RegistryEntry) -> None:
    assert SHA256.fullmatch(entry.gguf_sha256)
    assert entry.wheels
    assert all(SHA256.fullmatch(wheel.sha256) for wheel in entry.wheels)
    hashes = [entry.gguf_sha256, *(wheel.sha256 for wheel in entry.wheels)]
    assert len(set(hashes)) == len(hashes)


@ENTRIES
def test_every_entry_tells_what_it_is(entry: RegistryEntry) -> None:
    assert all((entry.description, entry.licence, entry.quantisation))
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_id)
    assert 0 < entry.download_bytes < entry.disk_bytes


def test_parts_are_joined_in_order() -> None:
    members = [wheel.member for wheel in REGISTRY["gemma3-270m"].wheels]
    assert [member[-2:] for member in members] == ["00", "01", "02", "03"]


def test_gemma_shows_its_terms() -> None:
    assert "ai.google.dev/gemma/terms" in (REGISTRY["gemma3-270m"].terms or "")


def test_the_registry_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(registry.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= sys.stdlib_module_names | {"collections.abc"}


def test_home_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATCHSCOPES_HOME", str(tmp_path))
    assert Settings.from_env().home == tmp_path


def test_home_may_be_relative_to_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATCHSCOPES_HOME", "~/models")
    assert Settings.from_env().home == tmp_path / "models"


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_else_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("PATCHSCOPES_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("PATCHSCOPES_HOME", value)
    home = Settings.from_env().home
    assert home.is_absolute()
    assert "patchscopes" in home.parts
