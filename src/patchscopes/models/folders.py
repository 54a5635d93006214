"""A model's folder under `Settings.home`: made whole or not at all, and checked against its own manifest.

A folder is made in a scratch folder beside the finished ones, under a lock of its name, and appears by one rename. The
lock is the operating system's, so it goes with a process that is killed; whatever then lies in the scratch folder of a
name that nobody holds is left over, and the next one to make a folder removes it.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout

from patchscopes.errors import ModelFilesError, OutputError
from patchscopes.provenance import versions

MANIFEST = "patchscopes.json"
SCHEMA = "patchscopes.model/1"
WEIGHTS = "model.safetensors"
FILES = ("config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")
CONVERTERS = ("gguf", "safetensors")

# Locks are taken in turn while waiting; how often to look again.
POLL_S = 0.2
# How much of a file is hashed at once.
PIECE_BYTES = 32 << 20

# Given an empty scratch folder and the empty folder to be, fill the latter and return what its manifest should tell.
Recipe = Callable[[Path, Path], Mapping[str, object]]


def make_folder(final: Path, home: Path, recipe: Recipe, *, on_wait: Callable[[], None] = lambda: None) -> Path:
    """Return `final`, made by `recipe` unless it is there and complete; a damaged one is replaced.

    Any number of processes may ask at once: one makes it, the others wait (`on_wait` is called once) and find it.
    Raises OutputError where `home` cannot be written, and whatever `recipe` raises; nothing half-made is left.
    """
    if damage(final) is None:
        return final
    key = f"{final.parent.name}-{final.name}"
    with _writing(home):
        scratch_root = home / "tmp" / key
        scratch_root.parent.mkdir(parents=True, exist_ok=True)
        (home / "locks").mkdir(exist_ok=True)
        with _locked(_lock(home, key), on_wait):
            if damage(final) is None:
                return final
            _remove_leftovers(home, key)
            scratch_root.mkdir(exist_ok=True)
            scratch = Path(mkdtemp(dir=scratch_root))
            try:
                folder = scratch / "folder"
                folder.mkdir()
                _write_manifest(folder, recipe(scratch, folder))
                _publish(folder, final, scratch)
            finally:
                shutil.rmtree(scratch_root, ignore_errors=True)
    return final


def is_converted(folder: Path) -> bool:
    """Whether `make_folder` made `folder`, so that it has a manifest."""
    return (folder / MANIFEST).is_file()


def manifest_of(folder: Path) -> Mapping[str, object]:
    """The manifest of a folder that `make_folder` made. Raises ModelFilesError where it is missing or unreadable."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path} cannot be read ({error}). Delete {folder} and get the model again.") from error
    if (
        not isinstance(manifest, dict)
        or manifest.get("schema") != SCHEMA
        or not isinstance(manifest.get("files"), dict)
    ):
        raise ModelFilesError(
            f"{path} is no manifest of schema {SCHEMA}, so another version of patchscopes wrote it. "
            f"Delete {folder} and get the model again."
        )
    return manifest


def damage(folder: Path) -> str | None:
    """What is wrong with `folder` at first sight (a file missing or of the wrong size), None where nothing is.

    Costs a few file lookups, so every load can afford it; `verify_files` is sure.
    """
    if not folder.is_dir():
        return f"{folder} does not exist"
    try:
        recorded = _recorded_files(folder)
    except ModelFilesError as error:
        return str(error)
    for name, (size, _) in recorded.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing from {folder}"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes and should have {size}"
    return None


def verify_files(folder: Path) -> None:
    """Compare the SHA-256 of every file with the manifest (about 1 GB/s); ModelFilesError names the first that differs.

    Raises ModelFilesError, too, where the manifest or a file is missing.
    """
    first_sight = damage(folder)
    if first_sight is not None:
        raise ModelFilesError(f"{first_sight}. Delete {folder} and get the model again.")
    for name, (_, recorded) in _recorded_files(folder).items():
        found = hash_file(folder / name)
        if found != recorded:
            raise ModelFilesError(
                f"{folder / name} is damaged: its SHA-256 is {found} and should be {recorded}. "
                f"Delete {folder} and get the model again (patchscopes models pull NAME, for a registry model)."
            )


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hex.

    Read in large pieces: between two of them a thread waits for the interpreter's lock, up to 5 ms beside Python that
    runs, and `hashlib.file_digest` reads a quarter of a MiB at a time.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(PIECE_BYTES, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(piece):
            digest.update(piece[:n_bytes])
    return digest.hexdigest()


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError (ENOSPC) where the disk of `folder` has not `needed_bytes` free: better now than half-way."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(errno.ENOSPC, f"needed {needed_bytes / 1e6:.0f} MB, free {free / 1e6:.0f} MB")


def _recorded_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Name → (bytes, SHA-256), as the manifest says."""
    files = manifest_of(folder)["files"]
    assert isinstance(files, dict)
    try:
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(f"{folder / MANIFEST} is damaged. Delete {folder} and get the model again.") from error


def _write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in FILES}
    made_with = {**versions(), **{name: version(name) for name in CONVERTERS}}
    manifest = {
        "schema": SCHEMA,
        **facts,
        "weights_sha256": files[WEIGHTS]["sha256"],
        "files": files,
        "made_with": made_with,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _publish(folder: Path, final: Path, scratch: Path) -> None:
    """Make `folder` appear as `final`. Files reach the disk first, else a power cut could leave names without data."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    final.parent.mkdir(exist_ok=True)
    if final.exists():  # Damaged; a folder cannot be renamed onto one that holds files.
        final.replace(scratch / "damaged")
    folder.replace(final)


def _lock(home: Path, key: str) -> FileLock:
    return FileLock(home / "locks" / f"{key}.lock")


@contextmanager
def _locked(lock: FileLock, on_wait: Callable[[], None]) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire(poll_interval=POLL_S)
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(home: Path, held: str) -> None:
    """Remove the scratch folders of processes that died: of the name `held`, and of names that nobody holds."""
    for scratch_root in (home / "tmp").iterdir():
        if scratch_root.name == held:
            shutil.rmtree(scratch_root, ignore_errors=True)
            continue
        with suppress(Timeout), _lock(home, scratch_root.name).acquire(timeout=0):
            shutil.rmtree(scratch_root, ignore_errors=True)


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Say what to do where the operating system refuses to write."""
    try:
        yield
    except OSError as error:
        detail = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, remedy = "the disk is full", "Free some space, or set PATCHSCOPES_HOME to a folder on another disk."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason, remedy = "it cannot be written", "Set PATCHSCOPES_HOME to a folder that you can write."
        else:
            reason, remedy = "a file operation failed", "Check that disk, or set PATCHSCOPES_HOME to another folder."
        raise OutputError(f"models are kept in {home}, and {reason}: {detail}. {remedy}") from error
