"""Read a run, also while it is being written."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from patchscopes.errors import StoreError
from patchscopes.results import Results
from patchscopes.spec import Row
from patchscopes.store.folder import Folder
from patchscopes.store.manifest import Manifest, ManifestDamagedError, read_manifest
from patchscopes.store.shards import ShardError, read_shard, to_rows

# A writer that merges shards takes some away: who reads them at that moment begins anew.
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it was when it was read: its rows by the index of their request.

    `damaged` are shards that could not be read, in words; `n_bytes` is the size of the others.
    """

    manifest: Manifest
    rows: Mapping[int, Row]
    damaged: tuple[str, ...]
    n_shards: int
    n_bytes: int
    being_written: bool

    @property
    def complete(self) -> bool:
        """Whether every request has its row."""
        return len(self.rows) == self.manifest.head.n_requests

    def results(self) -> Results:
        """The rows that are there, in the order of the request."""
        head = self.manifest.head
        spec = dict(head.spec)
        # Where another version, commit or device wrote some of the rows, that is told (rule 22).
        sessions = self.manifest.sessions
        if any((s.made_by, s.device) != (head.made_by, head.model.get("device")) for s in sessions if s.rows):
            spec["sessions"] = [
                {**s.made_by, "device": s.device, "started": s.started, "rows": s.rows} for s in sessions if s.rows
            ]
        return Results(
            [self.rows[index] for index in sorted(self.rows)],
            model=head.model,
            spec=spec,
            complete=self.complete,
            warnings=(*head.warnings, *self.damaged),
        )


def open_run(folder: str | PathLike[str]) -> Results:
    """The results that are in the run directory `folder`; not complete while the run is unfinished.

    Raises StoreError where `folder` is no run directory. A damaged shard is among the results' warnings.
    """
    return read_run(folder).results()


def read_run(folder: str | PathLike[str]) -> StoredRun:
    """As `open_run`, with what is known of the run besides."""
    place = Folder(Path(folder))
    for _ in range(MAX_TRIES):
        manifest = _manifest(place)
        # Asked before the shards are read, so that a run that ends meanwhile is rather told as running than as dead.
        being_written = place.is_being_written()
        found = _read(place, manifest, being_written=being_written)
        if not found.damaged or _manifest(place) == manifest:
            break
    return found


def _manifest(place: Folder) -> Manifest:
    try:
        manifest = read_manifest(place.manifest)
    except ManifestDamagedError as error:
        raise StoreError(f"{error}; run the command that wrote it again: it mends it and keeps the rows.") from error
    if manifest is None:
        what = "there is no such directory" if not place.path.exists() else "it has no manifest.json"
        raise StoreError(f"{place.path} is no run directory: {what}; give the --out of patchscopes run.")
    return manifest


def _read(place: Folder, manifest: Manifest, *, being_written: bool) -> StoredRun:
    digest = manifest.head.digest()
    paths = {path.name: path for path in place.shard_paths()}
    paths |= {shard.name: place.shards / shard.name for shard in manifest.shards}
    rows: dict[int, Row] = {}
    damaged, n_bytes = [], 0
    for name in sorted(paths):
        try:
            shard, table = read_shard(paths[name], digest)
        except ShardError as error:
            damaged.append(f"shard {name} is left out: {error}; the same run again does its rows anew")
            continue
        n_bytes += shard.n_bytes
        rows |= to_rows(table)
    return StoredRun(manifest, rows, tuple(damaged), len(paths) - len(damaged), n_bytes, being_written)
