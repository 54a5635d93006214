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
    found = _Found()
    for _ in range(MAX_TRIES):
        manifest = _manifest(place)
        # Asked before the shards are read, so that a run that ends meanwhile is rather told as running than as dead.
        being_written = place.is_being_written()
        found.read(place, manifest)
        if not found.damaged or _manifest(place) == manifest:
            break
    damaged = tuple(
        f"shard {name} is left out: {reason}; the same run again does its rows anew"
        for name, reason in found.damaged.items()
    )
    return StoredRun(manifest, found.rows, damaged, len(found.sizes), sum(found.sizes.values()), being_written)


class _Found:
    """What was read so far. A shard's name tells its content, so none is read twice, nor missed when it has gone."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.sizes: dict[str, int] = {}
        self.damaged: dict[str, str] = {}
        self._seen: dict[str, int] = {}

    def read(self, place: Folder, manifest: Manifest) -> None:
        """Read the shards that are there and were not read before."""
        digest = manifest.head.digest()
        named = {shard.name for shard in manifest.shards}
        names = sorted({path.name for path in place.shard_paths()} | named)
        self.damaged = {}
        for name in names:
            if name in self._seen:
                continue
            try:
                shard, table = read_shard(place.shards / name, digest)
            except ShardError as error:
                # One that has gone and is not named was merged into another, which is.
                if name in named or (place.shards / name).exists():
                    self.damaged[name] = str(error)
                continue
            self._seen[name] = shard.n_bytes
            self.rows |= to_rows(table)
        self.sizes = {name: self._seen[name] for name in names if name in self._seen}


def _manifest(place: Folder) -> Manifest:
    try:
        manifest = read_manifest(place.manifest)
    except ManifestDamagedError as error:
        raise StoreError(f"{error}; run the command that wrote it again: it mends it and keeps the rows.") from error
    if manifest is None:
        what = "there is no such directory" if not place.path.exists() else "it has no manifest.json"
        raise StoreError(f"{place.path} is no run directory: {what}; give the --out of patchscopes run.")
    return manifest
