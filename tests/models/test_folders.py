"""Hashes of files that are larger than what is read at once."""

import hashlib
from pathlib import Path

import pytest

from patchscopes.models import folders


@pytest.mark.parametrize("n_bytes", [0, 1, 9, 10, 11, 20, 25])
def test_a_hash_is_that_of_the_whole_file_whatever_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    monkeypatch.setattr(folders, "PIECE_BYTES", 10)
    content = bytes(range(n_bytes))
    (tmp_path / "file").write_bytes(content)
    assert folders.hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
