"""A path as the user gives it → the folder that transformers loads from, or one error that says what is there instead.

Taken: a folder as `save_pretrained` writes it, a .gguf file, a folder with one .gguf file, a repository in the hub's
cache. Said, with the path to give: training checkpoints, several models, files that git-lfs has not fetched.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from patchscopes.errors import ModelFilesError, UnknownModelError
from patchscopes.models.gguf import gguf_folder
from patchscopes.settings import Settings

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
LFS_START = b"version https://git-lfs"
# A pointer is three lines; larger files need not be read.
LFS_BYTES = 1024
# "model-00001-of-00003.gguf"
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
LISTED = 5


def is_path(name: str) -> bool:
    """Return whether `name` is an existing path, or can be nothing else."""
    if not name.strip():
        raise UnknownModelError("the model's name is empty; give a registry name, a path or a hub id.")
    try:
        exists = Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise UnknownModelError(f"{name[:80]!r} is neither a registry name nor a path: {error}.") from error
    return exists or name.startswith(("/", "./", "../", "~")) or name.lower().endswith(".gguf")


def folder_at(path: Path, settings: Settings) -> Path:
    """Return the folder to load what is at `path` from; of an adapter, the folder that holds it.

    Raises UnknownModelError where nothing is there, ModelFilesError where it is no model, and what reading GGUF raises.
    """
    if not path.exists():
        raise UnknownModelError(f"no such model path: {path}. Give a folder with config.json, or a .gguf file.")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UnknownModelError(
                f"{path} is a file, but no .gguf; give a .gguf file or a model's folder.{_near(path)}"
            )
        refuse_pointers(path.parent, [path])
        return gguf_folder(path, settings)
    path = _snapshot(path)
    if not any((path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        return _without_config(path, settings)
    refuse_pointers(path, [entry for entry in path.iterdir() if entry.is_file()])
    adapter = sorted(path.glob("adapter_model.*"))
    if adapter and not (path / ADAPTER_CONFIG).is_file():
        raise ModelFilesError(
            f"{path} holds an adapter's weights ({_listed(adapter)}) and no {ADAPTER_CONFIG}, which says how they go "
            "into the model. Put that file beside them, or take them away to load without."
        )
    return path


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds a model's own weights, beside those of an adapter."""
    return any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def refuse_pointers(folder: Path, files: Sequence[Path]) -> None:
    """Raise ModelFilesError where files are pointers of git-lfs, which stand for the real ones until it pulls them."""
    pointers = sorted(path.name for path in files if _is_pointer(path))
    if pointers:
        raise ModelFilesError(
            f"{folder} holds git-lfs pointers in place of {', '.join(pointers[:LISTED])}"
            f"{', …' if len(pointers) > LISTED else ''}: the files themselves were not fetched. Run `git lfs install "
            "&& git lfs pull` in that folder, or fetch the model with `hf download`."
        )


def _is_pointer(path: Path) -> bool:
    try:
        if path.stat().st_size > LFS_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_START)) == LFS_START
    except OSError:
        return False  # whoever reads it says so


def _near(path: Path) -> str:
    """Return a hint where a file belongs to a model's folder."""
    return f" Its folder holds a model: give {path.parent}." if (path.parent / CONFIG).is_file() else ""


def _snapshot(path: Path) -> Path:
    """Return the one snapshot of a repository in the hub's cache; any other folder as it is."""
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return path
    there = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    main = path / "refs" / "main"
    named = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    if named in there:
        return named
    if len(there) == 1:
        return there[0]
    hub_id = path.name.removeprefix("models--").replace("--", "/")
    raise ModelFilesError(
        f"{path} is the hub's cache of {hub_id}, with {len(there)} snapshots ({_listed(there)}). Give one of them, "
        f"{snapshots}/COMMIT, or the hub id {hub_id} with its revision."
    )


def _without_config(path: Path, settings: Settings) -> Path:
    """Return the folder of the one .gguf file that is in `path`; else say what is there, and what to give."""
    ggufs = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() == ".gguf")
    if len(ggufs) == 1 or (ggufs and all(GGUF_PART.search(entry.name) for entry in ggufs)):
        refuse_pointers(path, ggufs)
        return gguf_folder(ggufs[0], settings)
    if ggufs:
        raise ModelFilesError(f"{path} holds {len(ggufs)} .gguf files ({_listed(ggufs)}); give one of them.")
    inside = _models_inside(path)
    if inside:
        what = "checkpoints of a training" if CHECKPOINT.search(inside[0].name) else "models in folders of their own"
        raise ModelFilesError(f"{path} holds no model itself, but {what} ({_listed(inside)}); give one: {inside[0]}")
    if (path / "zero_to_fp32.py").is_file() or any(path.glob("global_step*")):
        raise ModelFilesError(
            f"{path} is a checkpoint of DeepSpeed, whose weights are spread over files of its own. Make a model of it "
            "(`python zero_to_fp32.py . OUTPUT --safe_serialization`), put config.json and the tokenizer beside, and "
            "give that folder."
        )
    if (path / "model_index.json").is_file():
        raise ModelFilesError(f"{path} is a diffusion pipeline (model_index.json); give a decoder-only language model.")
    everything = sorted(entry.name for entry in path.iterdir())
    raise ModelFilesError(
        f"{path} holds no model: config.json is missing (it holds {', '.join(everything[:LISTED]) or 'nothing'}). "
        "Give a folder as `save_pretrained` writes it."
    )


def _models_inside(path: Path) -> list[Path]:
    """Return folders inside `path` that hold a model, an adapter, or the hub's cache of one; the latest step first."""
    found = [
        entry
        for entry in path.iterdir()
        if entry.is_dir()
        and (
            any((entry / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
            or (entry.name.startswith("models--") and (entry / "snapshots").is_dir())
        )
    ]
    return sorted(found, key=lambda entry: (-_step(entry), entry.name))


def _step(path: Path) -> int:
    found = CHECKPOINT.search(path.name)
    return int(found.group(1)) if found else -1


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:LISTED]) + (", …" if len(paths) > LISTED else "")
