"""What a run is of, who wrote it when, and which shards it has."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchscopes.errors import StoreError
from patchscopes.results.rows import plain
from patchscopes.spec import SCHEMA
from patchscopes.store.folder import Folder, write_atomically
from patchscopes.store.shards import Shard

FORMAT = "patchscopes.run/1"
# Compared by "is": no JSON value is this object.
ABSENT: Any = object()
MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Head:
    """What a run is of.

    `sweep` is the resolved Sweep and `identity` the model's, with its weights' and config's hash: these and the dtype
    decide results. `model` describes the model, `made_by` is the software: runner, versions, commit.
    """

    sweep: Mapping[str, Any]
    identity: str
    model: Mapping[str, Any]
    made_by: Mapping[str, Any]
    n_requests: int
    warnings: tuple[str, ...] = ()

    def decisive(self) -> dict[str, Any]:
        """What two runs must have in common to be one, as JSON gives it back."""
        weights, *parts = self.identity.split("|")
        # Behind config stands what a model as loaded does not have: structure, attached, variant.
        model = {"weights": weights, **dict(part.split(":", 1) for part in parts), "dtype": self.model.get("dtype")}
        found: dict[str, Any] = json.loads(json.dumps({"model": model, **plain(self.sweep), "rows": self.n_requests}))
        return found

    def digest(self) -> str:
        """A SHA-256 of what decides, and of the schema of rows."""
        return hashlib.sha256(json.dumps([SCHEMA, self.decisive()], sort_keys=True).encode()).hexdigest()

    def differences(self, asked: "Head") -> list[str]:
        """In words, key by key, where `asked` is another run than this one."""
        return list(_differences("", self.decisive(), asked.decisive()))

    @property
    def spec(self) -> dict[str, Any]:
        """The full specification and the software, as Results have it."""
        return {**self.sweep, **self.made_by}


@dataclass(frozen=True, slots=True)
class Session:
    """One writer's time: when it began (UTC, ISO 8601), how long it took so far, how many rows it added, with what."""

    started: str
    seconds: float
    rows: int
    made_by: Mapping[str, Any]
    device: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a run. `n_rows` counts requests that have their row in `shards`."""

    head: Head
    sessions: tuple[Session, ...] = ()
    shards: tuple[Shard, ...] = ()
    n_rows: int = 0

    @property
    def complete(self) -> bool:
        """Whether every request has its row."""
        return self.n_rows == self.head.n_requests

    def write(self, folder: Folder) -> None:
        """Put it in the place of the one before. Raises OSError where the disk does."""
        values = {"format": FORMAT, "schema": SCHEMA, "complete": self.complete, **asdict(self)}
        write_atomically(folder.manifest, (json.dumps(plain(values), ensure_ascii=False) + "\n").encode())


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, None where there is none.

    Raises StoreError where it is of another version, and ManifestDamagedError where it cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ManifestDamagedError(f"{path} cannot be read ({error})") from error
    try:
        found = values["format"], values["schema"]
        if found != (FORMAT, SCHEMA):
            raise StoreError(
                f"{path.parent} was written as {' with '.join(map(str, found))}, and this version reads {FORMAT} with "
                f"{SCHEMA}; use the version that wrote it, or give another directory."
            )
        head = {**values["head"], "warnings": tuple(values["head"]["warnings"])}
        return Manifest(
            Head(**head),
            tuple(Session(**session) for session in values["sessions"]),
            tuple(Shard(**shard) for shard in values["shards"]),
            values["n_rows"],
        )
    except (KeyError, TypeError) as error:
        raise ManifestDamagedError(f"{path} is no manifest of a run ({error!r})") from error


class ManifestDamagedError(StoreError):
    """A manifest that cannot be read; the shards hold all that is needed to write it anew."""


def _differences(key: str, there: Any, asked: Any) -> Iterator[str]:
    """The smallest parts that differ; of lists of unequal length, the lengths."""
    if there == asked:
        return
    if isinstance(there, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*there, *asked)):
            inner = f"{key}.{name}" if key else name
            yield from _differences(inner, there.get(name, ABSENT), asked.get(name, ABSENT))
    elif isinstance(there, list) and isinstance(asked, list) and len(there) != len(asked):
        yield f"{key}: {_shown(there)} there, {_shown(asked)} asked for"
    elif isinstance(there, list) and isinstance(asked, list):
        for index, (one, other) in enumerate(zip(there, asked, strict=True)):
            yield from _differences(f"{key}[{index}]", one, other)
    else:
        yield f"{key}: {_shown(there)} there, {_shown(asked)} asked for"


def _shown(value: Any) -> str:
    """`value` as JSON, in short."""
    if value is ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{len(value):,} entries" if isinstance(value, list) else f"{text[:MAX_SHOWN]}…"
