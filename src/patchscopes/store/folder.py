"""A run directory: where things lie in it, its lock, and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout

from patchscopes.errors import RunInUseError, StoreError

PART = ".part"
OWN = frozenset({"manifest.json", "shards", "damaged", "lock"})
# Longer than `is_being_written` holds the lock to see whether it is free.
LOCK_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths of a run directory."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What the run is of, and its shards."""
        return self.path / "manifest.json"

    @property
    def shards(self) -> Path:
        """The folder of rows."""
        return self.path / "shards"

    @property
    def damaged(self) -> Path:
        """Where shards go that cannot be read."""
        return self.path / "damaged"

    @property
    def lock(self) -> Path:
        """What the writer holds."""
        return self.path / "lock"

    def shard_paths(self) -> list[Path]:
        """The closed shards, oldest first."""
        return sorted(self.shards.glob("*.parquet"))

    def make(self) -> None:
        """Make what is missing. Raises StoreError where that cannot be, or where the folder is of another kind."""
        check_folder(self.path)
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make the run directory {self.path}: {error.strerror}; give another one."
            ) from error

    def remove_leftovers(self) -> None:
        """Remove what a writer that was killed had begun; only the writer may, since others' files look the same."""
        for part in (*self.path.glob(f".*{PART}"), *self.shards.glob(f".*{PART}")):
            part.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one writer. Raises RunInUseError where there is one."""
        # Not bound to a thread: a generator that holds it may be closed by another.
        lock = FileLock(self.lock, thread_local=False)
        try:
            lock.acquire(timeout=LOCK_PATIENCE_S)
        except Timeout as error:
            raise _in_use(self.path) from error
        except OSError as error:
            raise StoreError(f"cannot write in {self.path}: {error.strerror}; give another run directory.") from error
        try:
            yield
        finally:
            lock.release()

    def is_being_written(self) -> bool:
        """Whether some process is the writer at this moment."""
        if not self.lock.exists():
            return False
        lock = FileLock(self.lock, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a folder that cannot be written has no writer
            return False
        lock.release()
        return False


def run_folder(path: object) -> Path:
    """The path of a run directory. Raises StoreError for an empty name, which would be the current folder."""
    if not isinstance(path, str | PathLike) or not str(path).strip():
        raise StoreError(f"the run directory is {path!r}; name a directory.")
    return Path(path)


def check_folder(path: str | PathLike[str]) -> None:
    """Raise StoreError where `path` cannot be a run directory, or RunInUseError where it has a writer.

    For whoever has something slow to do before a writer is opened, such as loading a model.
    """
    folder = Folder(run_folder(path))
    if not folder.path.exists():
        return
    if not folder.path.is_dir():
        raise StoreError(f"{path} is a file; a run needs a directory of its own.")
    if not folder.manifest.exists() and (foreign := sorted({p.name for p in folder.path.iterdir()} - OWN)):
        shown = [name for name in foreign if not name.endswith(PART)]
        if shown:
            raise StoreError(
                f"{path} is no run directory: it has no manifest.json and holds {', '.join(shown[:3])}; give a new or "
                "an empty one."
            )
    if folder.is_being_written():
        raise _in_use(folder.path)


def _in_use(path: Path) -> RunInUseError:
    return RunInUseError(
        f"another process is writing to {path}; wait until it ends, or give another directory (patchscopes show "
        f"{path} tells how far it is)."
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` so that it is there whole or not at all, also after a power cut."""
    part = path.with_name(f".{path.name}{PART}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # after an interrupt
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """Have a rename on disk. Windows knows no such thing for folders, nor needs it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
