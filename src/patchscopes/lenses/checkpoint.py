"""Lenses from files: those that `Mappings.save` wrote, and the published tuned-lens checkpoints.

A published one (AlignmentResearch/tuned-lens) is a folder with `config.json` and `params.pt`. Translator i reads
`hidden_states[i]`, the stream after i blocks, so that it is our ℓ = i; `i.weight` and `i.bias` are those of a linear
layer whose output is added to the state: f(h) = h + h Wᵀ + b.

Its `unembed_hash` is a SHA-256 of the unembedding matrix *as NumPy prints it* to one decimal, six rows and columns of
it: it tells models apart, not versions of one that differ elsewhere. A lens that was loaded belongs to all weights of
the model that it was loaded for.
"""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchscopes.errors import MappingError
from patchscopes.lenses.reading import check_lens
from patchscopes.mappings import Mapping, Mappings, Side
from patchscopes.models import Model

CONFIG, PARAMETERS = "config.json", "params.pt"
LENS_TYPE = "linear_tuned_lens"


def load_tuned_lens(path: str | os.PathLike[str], model: Model) -> Mappings:
    """The lens in a file of ours, or in a folder of the published form, for `model`.

    Raises MappingError, with the figures, where it is for another model, incomplete, or none.
    """
    path = Path(path)
    if path.is_dir():
        return _published(path, model)
    lens = Mappings.load(path)
    check_lens(lens, model)
    return lens


def unembed_hash(model: Model) -> str:
    """What published lenses call the hash of a model's unembedding matrix."""
    matrix = model.hf.get_output_embeddings().weight.detach().cpu().float().numpy()
    with np.printoptions(edgeitems=3, threshold=1000, linewidth=75, suppress=False, floatmode="maxprec"):
        return hashlib.sha256(np.array_str(matrix, precision=1).encode()).hexdigest()


def _published(folder: Path, model: Model) -> Mappings:
    missing = [name for name in (CONFIG, PARAMETERS) if not (folder / name).is_file()]
    if missing:
        raise MappingError(
            f"{folder} has no {' and no '.join(missing)}; a published tuned lens is a folder with {CONFIG} and "
            f"{PARAMETERS}. Give that, or a file that save() wrote."
        )
    config = _config(folder / CONFIG)
    _compare(config, folder, model)
    parameters = _parameters(folder / PARAMETERS)
    by_pair = {
        (layer, model.n_layers): _translator(parameters, layer, folder, model) for layer in range(model.n_layers)
    }
    unknown = sorted(set(parameters) - {f"{layer}.{part}" for layer in range(model.n_layers) for part in _PARTS})
    if unknown:
        raise MappingError(
            f"{folder / PARAMETERS} holds {', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}, which no linear "
            f"translator of {model.n_layers} layers has; it is a lens of another form."
        )
    side = Side.of(model)
    return Mappings("tuned", side, side, by_pair, {"published": config, "params_sha256": _sha256(folder / PARAMETERS)})


_PARTS = ("weight", "bias")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MappingError(f"{path} cannot be read as JSON ({error}); get the lens again.") from error
    needed = ("d_model", "num_hidden_layers", "unembed_hash")
    absent = [key for key in needed if not isinstance(config, dict) or config.get(key) is None]
    if absent:
        raise MappingError(
            f"{path} has no {', '.join(absent)}, so that nothing tells which model the lens is for; get a lens that "
            "tuned-lens 0.1 or newer has saved."
        )
    return dict(config)


def _compare(config: dict[str, Any], folder: Path, model: Model) -> None:
    """Refuse a lens for another model, or one that is not linear."""
    kind = config.get("lens_type", LENS_TYPE)
    if kind != LENS_TYPE:
        raise MappingError(f"the lens in {folder} is of the type {kind!r}; only {LENS_TYPE!r} can be read.")
    of = config.get("base_model_name_or_path", "another model")
    for name, theirs, ours in (
        ("d_model", config["d_model"], model.d_model),
        ("layers", config["num_hidden_layers"], model.n_layers),
        ("the unembedding hash", config["unembed_hash"], unembed_hash(model)),
    ):
        if theirs != ours:
            raise MappingError(
                f"the lens in {folder} was trained for {of} with {name} {theirs}; {model.id} in {model.dtype_name} has "
                f"{ours}. Load the model that it belongs to, in float32."
            )


def _parameters(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MappingError(f"{path} cannot be read as tensors ({reason}); get the lens again.") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise MappingError(f"{path} holds no dictionary of tensors; get the lens again.")
    return found


def _translator(parameters: dict[str, Tensor], layer: int, folder: Path, model: Model) -> Mapping:
    d = model.d_model
    for part, shape in (("weight", (d, d)), ("bias", (d,))):
        name = f"{layer}.{part}"
        if name not in parameters:
            raise MappingError(
                f"{folder / PARAMETERS} has no {name}; the lens of a model with {model.n_layers} layers has a weight "
                f"and a bias for each of 0 to {model.n_layers - 1}. Get the lens again."
            )
        if tuple(parameters[name].shape) != shape:
            raise MappingError(
                f"{name} in {folder / PARAMETERS} has the shape {tuple(parameters[name].shape)}; it must be {shape}."
            )
    weight = torch.eye(d, dtype=torch.float32, device="cpu") + parameters[f"{layer}.weight"].float().T
    return Mapping(weight.contiguous(), parameters[f"{layer}.bias"].float())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
