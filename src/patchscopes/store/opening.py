"""Open a run for writing: take its lock, refuse what is another run, and find out what is done."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from patchscopes.errors import PatchscopesWarning, RunChangedError, StoreError
from patchscopes.store.folder import Folder
from patchscopes.store.manifest import Head, Manifest, ManifestDamagedError, Session, read_manifest
from patchscopes.store.shards import REQUEST, Shard, ShardError, read_shard
from patchscopes.store.writer import Done, Writer

MAX_DIFFERENCES = 6


@contextmanager
def open_writer(folder: str | PathLike[str], head: Head) -> Iterator[Writer]:
    """Be the writer of the run `head` in `folder`, new or begun before, until the context ends.

    Warns of a shard that is damaged, which is set aside, and of software other than that which wrote before.

    Raises:
        RunInUseError: another process is the writer.
        RunChangedError: the run there is of another specification or model; the message says what differs.
        StoreError: the folder cannot be written, or is no run directory.
    """
    place = Folder(Path(folder))
    place.make()
    with place.locked():
        try:
            place.remove_leftovers()
            manifest = _agreed(place, head)
            found = _shards(place, manifest)
        except OSError as error:
            raise StoreError(f"cannot use {folder} as a run directory: {error.strerror or error}.") from error
        session = Session(datetime.now(UTC).isoformat(timespec="seconds"), 0.0, 0, head.made_by, _device(head))
        manifest = replace(
            manifest,
            # What is warned of may be worded otherwise by now; the rows that are to come are of this resolution.
            head=replace(manifest.head, warnings=head.warnings),
            sessions=(*(one for one in manifest.sessions if one.rows), session),
            shards=found.shards,
            n_rows=len(found.done),
        )
        writer = Writer(place, manifest, found.done)
        with writer.closing():
            yield writer


@dataclass(frozen=True, slots=True)
class _Found:
    shards: tuple[Shard, ...]
    done: dict[int, Done]


def _agreed(place: Folder, head: Head) -> Manifest:
    """The manifest that is there, where it is of `head`; a new one where there is none or none that can be read."""
    try:
        manifest = read_manifest(place.manifest)
    except ManifestDamagedError as error:
        _warn(f"{error}; it is written anew from the shards.")
        return Manifest(head)
    if manifest is None or not (manifest.shards or place.shard_paths()):
        return Manifest(head)  # where no row was kept, nothing can be mixed up
    if found := manifest.head.differences(head):
        more = [f"… and {len(found) - MAX_DIFFERENCES} more"] if len(found) > MAX_DIFFERENCES else []
        raise RunChangedError(
            f"{place.path} holds another run than is asked for:\n"
            + "".join(f"  {line}\n" for line in [*found[:MAX_DIFFERENCES], *more])
            + "Give another directory, or what that run was begun with."
        )
    if manifest.sessions:
        _warn_of_software(place, manifest.sessions[-1], head)
    return manifest


def _warn_of_software(place: Folder, last: Session, head: Head) -> None:
    """Warn where a part of the software, or the device, is another than that of the last session."""
    there = {**last.made_by.get("versions", {}), "commit": last.made_by.get("commit"), "device": last.device}
    here = {**head.made_by.get("versions", {}), "commit": head.made_by.get("commit"), "device": _device(head)}
    changed = [
        f"{key} {there.get(key)} → {here.get(key)}" for key in {**there, **here} if there.get(key) != here.get(key)
    ]
    if changed:
        _warn(f"{place.path} was begun with other software: {', '.join(changed)}; its rows are kept.")


def _shards(place: Folder, manifest: Manifest) -> _Found:
    """Every shard that can be used, whether the manifest has it yet or not; others are set aside."""
    digest = manifest.head.digest()
    names = sorted({path.name for path in place.shard_paths()} | {shard.name for shard in manifest.shards})
    shards: list[Shard] = []
    done: dict[int, Done] = {}
    for name in names:
        path = place.shards / name
        try:
            shard, table = read_shard(path, digest, columns=[REQUEST, "cell", "status"])
        except ShardError as error:
            if error.foreign is not None and not manifest.shards:
                raise RunChangedError(
                    f"{place.path} has shards of another specification or model ({name}) and no manifest that would "
                    "tell which; give another directory, or what that run was begun with."
                ) from error
            _set_aside(place, path)
            _warn(f"shard {name} of {place.path} is not used: {error}; its rows are done anew.")
            continue
        shards.append(shard)
        columns = (table.column(column).to_pylist() for column in (REQUEST, "cell", "status"))
        done |= {index: Done(cell, status) for index, cell, status in zip(*columns, strict=True)}
    return _Found(tuple(shards), done)


def _set_aside(place: Folder, path: Path) -> None:
    if path.exists():
        place.damaged.mkdir(exist_ok=True)
        path.replace(place.damaged / path.name)


def _device(head: Head) -> str:
    return str(head.model.get("device"))


def _warn(message: str) -> None:
    warnings.warn(message, PatchscopesWarning, stacklevel=2)
