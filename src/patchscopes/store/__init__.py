"""A run on disk, which keeps what is done.

    DIR/manifest.json     what the run is of (specification, model), who wrote it when, its shards; written last
    DIR/shards/*.parquet  rows with the index of their request, closed every few seconds by an atomic rename
    DIR/damaged/          shards that could not be read, set aside
    DIR/lock              held by the one writer, and let go of by the system when that process dies

A shard's name carries the hash of its bytes and its metadata the hash of what the run is of, so a shard that the
manifest does not yet name is taken in, and one that is damaged or foreign is told from it. Nothing here imports torch.
"""

from patchscopes.store.folder import check_folder, run_folder
from patchscopes.store.manifest import Head, Manifest, Session
from patchscopes.store.opening import open_writer
from patchscopes.store.reader import StoredRun, open_run, read_run
from patchscopes.store.writer import Done, Writer

__all__ = [
    "Done",
    "Head",
    "Manifest",
    "Session",
    "StoredRun",
    "Writer",
    "check_folder",
    "open_run",
    "open_writer",
    "read_run",
    "run_folder",
]
