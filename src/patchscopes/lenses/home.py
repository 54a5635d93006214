"""Trained lenses kept on this machine: one for each model's weights and each text and way of training, made once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock, Timeout

from patchscopes.data import DataSet, Passage
from patchscopes.errors import MappingError, OutputError
from patchscopes.lenses.checkpoint import load_tuned_lens
from patchscopes.lenses.tuned import TunedOptions, fit_tuned_lens
from patchscopes.mappings import Mappings
from patchscopes.models import Model
from patchscopes.settings import Settings

TRAINER = 1  # to be raised where the same text and options would give another lens


def lens_path(settings: Settings, model: Model, texts: DataSet[Passage], options: TunedOptions) -> Path:
    """Where the lens of these weights, trained on `texts` in this way, is or would be."""
    layers = None if options.layers is None else list(options.layers)  # a range is no JSON
    way = asdict(options) | {"layers": layers, "tell": None, "texts": texts.sha256, "trainer": TRAINER}
    key = hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:8]
    weights = hashlib.sha256(model.identity.encode()).hexdigest()[:16]
    return settings.home / "lenses" / f"{weights}-{key}.safetensors"


def kept_lens(
    model: Model,
    texts: DataSet[Passage],
    settings: Settings,
    options: TunedOptions,
    *,
    notify: Callable[[str], None] = lambda _: None,
) -> Mappings:
    """The lens in `settings.home`, trained first unless it is there; `notify` hears where it is, and the training.

    Of several processes that ask at once, one trains and the others wait. A file that cannot be read is made anew.
    Raises OutputError, before anything is trained, where `settings.home` cannot be written, and what
    `fit_tuned_lens` raises.
    """
    path = lens_path(settings, model, texts, options)
    if (found := _read(path, model, notify)) is not None:
        return found
    with _locked(settings.home, path, notify):
        if (found := _read(path, model, notify)) is not None:
            return found
        lens = fit_tuned_lens(model, texts.items, options=replace(options, tell=notify))
        lens.save(path)
    notify(f"the lens is in {path}")
    return lens


def _read(path: Path, model: Model, notify: Callable[[str], None]) -> Mappings | None:
    if not path.is_file():
        return None
    try:
        return load_tuned_lens(path, model)
    except MappingError as error:
        notify(f"{error} It is trained again.")
        return None


@contextmanager
def _locked(home: Path, path: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """While open, no other process trains the lens of `path`, whose folder is there and can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (home / "locks").mkdir(exist_ok=True)
        with NamedTemporaryFile(dir=path.parent):
            pass
        lock = FileLock(home / "locks" / f"lens-{path.stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify("waiting for another process that trains this lens")
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise OutputError(
            f"cannot keep a lens in {path.parent}: {error.strerror}; set PATCHSCOPES_HOME to a folder that can be "
            "written."
        ) from error
    try:
        yield
    finally:
        lock.release()
