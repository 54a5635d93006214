"""Write a run: rows are buffered, and a thread closes a shard of them every few seconds.

A thread, since rows come in bursts: the last one of a batch must not wait for the next batch to be on disk.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from patchscopes.errors import StoreError
from patchscopes.spec import Row
from patchscopes.store.folder import Folder
from patchscopes.store.manifest import Manifest
from patchscopes.store.shards import Shard, ShardError, merged, number_of, read_shard, to_rows, to_table, write_shard

if TYPE_CHECKING:
    import pyarrow

# What a kill may cost: an eighth of the work at the most, and no more than this.
MAX_INTERVAL_S, MIN_INTERVAL_S, SHARE_AT_RISK = 3.0, 0.05, 1 / 8
# Where a disk is slow, writing takes a twentieth of the time at the most, unless that puts more than this at risk.
SLOW_INTERVAL_S, WRITES_APART = 10.0, 20
# Shards are merged into one when there are many, those apart that are large enough to be left alone.
MAX_SMALL, FULL_ROWS = 32, 20_000


@dataclass(frozen=True, slots=True)
class Done:
    """Of a stored row: the identity of its cell, and its status."""

    cell: str | None
    status: str


class Writer:
    """The one writer of a run (see `open_writer`). `done` are the rows that were there, by the index of their request.

    Rows may be appended from one thread.
    """

    def __init__(self, folder: Folder, manifest: Manifest, done: Mapping[int, Done]) -> None:
        self.done = done
        self.counts = Counter(row.status for row in done.values())
        self._folder, self._manifest = folder, manifest
        self._digest = manifest.head.digest()
        self._next = 1 + max((number_of(path.name) for path in folder.shard_paths()), default=0)
        self._buffer: list[tuple[int, Row]] = []
        self._guard = threading.Lock()
        self._began = time.monotonic()
        self._last_write_s = 0.0
        self._stop = threading.Event()
        self._failure: StoreError | None = None
        self._thread = threading.Thread(target=self._keep_closing, name="patchscopes-store", daemon=True)

    def append(self, index: int, row: Row) -> None:
        """Keep the row of the request at `index`. Raises StoreError where what came before could not be written."""
        assert row.status != "skipped", "what was not run is no result"
        assert index not in self.done, f"row {index} is there"
        if self._failure is not None:
            raise self._failure
        with self._guard:
            self._buffer.append((index, row))
            self.counts[row.status] += 1

    def stored(self) -> dict[int, Row]:
        """The rows of `done`, whole."""
        rows: dict[int, Row] = {}
        for shard in self._manifest.shards:
            rows |= to_rows(self._table(shard))
        return {index: row for index, row in rows.items() if index in self.done}

    def close_shard(self) -> None:
        """Have on disk whatever was appended so far. Raises StoreError where that cannot be."""
        with self._guard:
            rows, self._buffer = self._buffer, []
        if not rows:
            return
        began = time.monotonic()
        with self._told_failures():
            self._add(to_table(rows), (), n_new=len(rows))
            if len(small := self._small()) > MAX_SMALL:
                self._merge(small)
        self._last_write_s = time.monotonic() - began

    @contextmanager
    def closing(self) -> Iterator[None]:
        """While open, shards are closed in time; at the end, whatever ends it, the last one."""
        with self._told_failures():
            self._manifest.write(self._folder)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            if self._failure is not None:
                raise self._failure
            self.close_shard()
            with self._told_failures():
                if len(small := self._small()) > 1:
                    self._merge(small)
                self._write_manifest(self._manifest)

    def _keep_closing(self) -> None:
        while not self._stop.wait(self._interval()):
            try:
                self.close_shard()
            except StoreError as error:
                self._failure = error
                return

    def _interval(self) -> float:
        """How long to wait before the next shard is closed."""
        at_risk = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, SHARE_AT_RISK * (time.monotonic() - self._began)))
        return max(at_risk, min(SLOW_INTERVAL_S, WRITES_APART * self._last_write_s))

    @contextmanager
    def _told_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write to {self._folder.path}: {error.strerror or error}; what was there is kept. Mend that, "
                "then run the same again: it goes on from there."
            ) from error

    def _small(self) -> list[Shard]:
        return [shard for shard in self._manifest.shards if shard.rows < FULL_ROWS]

    def _merge(self, shards: list[Shard]) -> None:
        """Put one shard in the place of several; who is killed in between has some rows twice, and none less."""
        self._add(merged([self._table(shard) for shard in shards]), shards, n_new=0)
        for shard in shards:
            (self._folder.shards / shard.name).unlink(missing_ok=True)

    def _table(self, shard: Shard) -> "pyarrow.Table":
        try:
            return read_shard(self._folder.shards / shard.name, self._digest)[1]
        except ShardError as error:
            raise StoreError(
                f"shard {shard.name} of {self._folder.path} has become unusable: {error}. Run the same again: it does "
                "the rows of that shard anew."
            ) from error

    def _add(self, table: "pyarrow.Table", instead_of: Sequence[Shard], *, n_new: int) -> None:
        shard = write_shard(self._folder.shards, self._next, table, self._digest)
        self._next += 1
        kept = tuple(one for one in self._manifest.shards if one not in instead_of)
        self._write_manifest(
            replace(self._manifest, shards=(*kept, shard), n_rows=self._manifest.n_rows + n_new), n_new=n_new
        )

    def _write_manifest(self, manifest: Manifest, *, n_new: int = 0) -> None:
        *before, session = manifest.sessions
        session = replace(session, seconds=round(time.monotonic() - self._began, 3), rows=session.rows + n_new)
        self._manifest = replace(manifest, sessions=(*before, session))
        self._manifest.write(self._folder)
