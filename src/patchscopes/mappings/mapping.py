"""f: what a state goes through between the layer that it is read at and the one that it is written at.

    Mapping     one f, h ↦ h W + b, from layer ℓ of one model to layer ℓ* of the same or another
    Mappings    several of one kind, by (ℓ, ℓ*), with the weights that they were fitted for, in one safetensors file

A mapping belongs to the weights that it was fitted for, and is refused for any others.

Axes: d_source and d_target, the widths of the two models.
"""

import hashlib
import json
import os
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchscopes.cached import cached_property
from patchscopes.errors import MappingError, OutputError
from patchscopes.models import Model
from patchscopes.results.entry import ranges
from patchscopes.spec import Sweep

Kind = Literal["affine", "ridge", "orthogonal", "tuned"]
Pair = tuple[int, int]  # (ℓ, ℓ*)

SCHEMA = "patchscopes.mappings/1"


@dataclass(frozen=True, slots=True)
class Side:
    """A model that a mapping was fitted for: `weights` tells it (`Model.weights`), `id` is what it was asked for by."""

    id: str
    weights: str
    n_layers: int
    d_model: int

    @classmethod
    def of(cls, model: Model) -> "Side":
        """What a mapping remembers of `model`."""
        return cls(model.id, model.weights, model.n_layers, model.d_model)


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a mapping does on text that it was not fitted on, over `n_tokens` positions.

    `r2` is 1 − Σ‖y − f(x)‖² / Σ‖y − ȳ‖², over all dimensions together, where a few of them often hold nearly all of the
    sum; `r2_median` is the median of the same in each dimension by itself. `kl` is the mean divergence of the model's
    own next-token distribution from the one read through a lens, in nats; None where none was computed.
    """

    n_tokens: int
    r2: float | None = None
    r2_median: float | None = None
    kl: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Mapping:
    """One f: h ↦ h W + b, in float32."""

    weight: Float[Tensor, "d_source d_target"]
    bias: Float[Tensor, " d_target"]
    quality: Quality | None = None

    def __post_init__(self) -> None:
        if not (bool(self.weight.isfinite().all()) and bool(self.bias.isfinite().all())):
            raise MappingError("a mapping holds numbers that are not finite; fit it on more text, or with more ridge.")

    def __call__(self, states: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_target"]:
        """`states` mapped, in float32. Raises MappingError for states of another width."""
        if states.shape[-1:] != self.weight.shape[:1]:
            raise MappingError(
                f"states of shape {tuple(states.shape)} were given; this mapping takes (…, {self.weight.shape[0]})."
            )
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        return states.float() @ weight + bias

    def __repr__(self) -> str:
        d_source, d_target = self.weight.shape
        return f"Mapping({d_source} → {d_target}, {self.quality})"

    @cached_property
    def digest(self) -> str:
        """A SHA-256 prefix (32 hex digits) of its numbers: what a cell's identity has of it."""
        digest = hashlib.sha256(repr(tuple(self.weight.shape)).encode())
        for tensor in (self.weight, self.bias):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Mappings:
    """Mappings of one kind by (ℓ, ℓ*), from the `source` model to the `target`, which may be the same.

    `fitted` says on what and how, as plain JSON: texts by their hash, positions, options, versions.
    """

    kind: Kind
    source: Side
    target: Side
    by_pair: Dict[Pair, Mapping]
    fitted: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.by_pair:
            raise MappingError("no mapping was given; fit at least one (ℓ, ℓ*).")
        for pair, mapping in self.by_pair.items():
            shape = tuple(mapping.weight.shape)
            if shape != (self.source.d_model, self.target.d_model):
                raise MappingError(
                    f"the mapping for (ℓ, ℓ*) = {pair} takes {shape[0]} dimensions to {shape[1]}; {self.source.id} has "
                    f"{self.source.d_model} and {self.target.id} {self.target.d_model}."
                )

    def __repr__(self) -> str:
        between = f"{self.source.id!r} → {self.target.id!r}"
        return f"Mappings({self.kind!r}, {between}, {len(self.by_pair)} pairs (ℓ, ℓ*): {self.pairs_in_words()})"

    def __len__(self) -> int:
        return len(self.by_pair)

    def __getitem__(self, pair: Pair) -> Mapping:
        """The mapping for (ℓ, ℓ*). Raises MappingError where it was not fitted."""
        if pair not in self.by_pair:
            raise MappingError(
                f"this {self.kind} mapping was not fitted for (ℓ, ℓ*) = {pair}; it has {self.pairs_in_words()}. Name "
                "layers that it has, or fit these."
            )
        return self.by_pair[pair]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The (ℓ, ℓ*) that were fitted, in order."""
        return tuple(sorted(self.by_pair))

    def pairs_in_words(self) -> str:
        """The pairs as people read them: the product of two lists where they are one, else the first of them."""
        sources, targets = (sorted({pair[side] for pair in self.by_pair}) for side in (0, 1))
        if len(self.by_pair) == len(sources) * len(targets):
            return f"ℓ = {ranges(sources)} with ℓ* = {ranges(targets)}"
        shown = ", ".join(map(str, self.pairs[:8]))
        return shown if len(self.by_pair) <= 8 else f"{shown}, … ({len(self.by_pair)} in all)"

    @cached_property
    def digest(self) -> str:
        """A SHA-256 prefix (32 hex digits) of all of them, with their pairs."""
        parts = [(pair, self.by_pair[pair].digest) for pair in self.pairs]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def describe(self) -> dict[str, object]:
        """Provenance as plain JSON: of what kind, between which weights, fitted on what."""
        return {
            "kind": self.kind,
            "digest": self.digest,
            "source": asdict(self.source),
            "target": asdict(self.target),
            "fitted": dict(self.fitted),
        }

    def check(self, source: Model, target: Model) -> None:
        """Raise MappingError, with the hashes, where it was fitted for other weights."""
        for part, fitted, model in (("source", self.source, source), ("target", self.target, target)):
            if fitted.weights != model.weights:
                raise MappingError(
                    f"this {self.kind} mapping was fitted for the {part} model {fitted.id} with the weights "
                    f"{fitted.weights}; {model.id} has {model.weights}. Load the model that it belongs to, or fit "
                    "it for this one."
                )

    def label(self, pair: Pair) -> str:
        """What a row calls f: its kind and digest."""
        return f"{self.kind}:{self[pair].digest}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to one safetensors file. Raises OutputError where that cannot be written."""
        tensors: dict[str, Tensor] = {}
        for (source, target), mapping in self.by_pair.items():
            for name, tensor in (("weight", mapping.weight), ("bias", mapping.bias)):
                # A copy: safetensors refuses tensors that share memory, as where pairs have one mapping.
                tensors[f"{source}-{target}.{name}"] = tensor.detach().cpu().clone().contiguous()
        quality = {f"{a}-{b}": asdict(m.quality) for (a, b), m in self.by_pair.items() if m.quality is not None}
        metadata = {
            "schema": SCHEMA,
            "kind": self.kind,
            "source": json.dumps(asdict(self.source)),
            "target": json.dumps(asdict(self.target)),
            "fitted": json.dumps(dict(self.fitted)),
            "quality": json.dumps(quality),
        }
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            save_file(tensors, part, metadata)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write {path}: {error}; give a file in a folder that can be written.") from error
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Mappings":
        """What `save` wrote. Raises MappingError for a file that is none of it."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise MappingError(
                f"{os.fspath(path)} cannot be read as mappings: {error}; give a file that save() wrote."
            ) from error
        if metadata.get("schema") != SCHEMA:
            raise MappingError(
                f"{os.fspath(path)} is no file of schema {SCHEMA} (it says {metadata.get('schema')!r}): give a file "
                "that this version's save() wrote."
            )
        try:
            return cls._read(metadata, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise MappingError(f"{os.fspath(path)} is damaged ({error!r}); save it again.") from error

    @classmethod
    def _read(cls, metadata: Dict[str, str], tensors: Dict[str, Tensor]) -> "Mappings":
        if metadata["kind"] not in get_args(Kind):
            raise ValueError(f"kind {metadata['kind']!r}")
        quality = json.loads(metadata["quality"])
        by_pair = {}
        for name in sorted(name.removesuffix(".weight") for name in tensors if name.endswith(".weight")):
            source, target = map(int, name.split("-"))
            found = Quality(**quality[name]) if name in quality else None
            by_pair[source, target] = Mapping(tensors[f"{name}.weight"], tensors[f"{name}.bias"], found)
        source_side, target_side = (Side(**json.loads(metadata[part])) for part in ("source", "target"))
        kind: Any = metadata["kind"]
        return cls(kind, source_side, target_side, by_pair, json.loads(metadata["fitted"]))


@dataclass(frozen=True)
class Transfer:
    """M, f and M*: whose states are read, how they are mapped, and whose run they are written into."""

    source: Model
    target: Model
    mappings: Mappings | None = None

    @classmethod
    def of(cls, model: "Model | Transfer") -> "Transfer":
        """Within one model and as they are, where a model alone is given."""
        return cls(model, model) if isinstance(model, Model) else model

    @property
    def models(self) -> "tuple[Model, ...]":
        """The models, each once."""
        return (self.source,) if self.within else (self.source, self.target)

    def called(self, variant: str | None) -> "Transfer":
        """The same of the models under the name that the caller gives what is attached to them (`Model.called`)."""
        if variant is None:
            return self
        source = self.source.called(variant)
        return Transfer(source, source if self.within else self.target.called(variant), self.mappings)

    def current(self, *, content: bool = True) -> bool:
        """Have each model look whether it is what it was (`Model.current`); whether all are."""
        found = [model.current(content=content) for model in self.models]
        return all(found)

    @property
    def state(self) -> "tuple[tuple[int, str], ...]":
        """What the models are now, as far as they know."""
        return tuple((model.epoch, model.identity) for model in self.models)

    def describe(self) -> dict[str, object]:
        """Provenance of the target model and of f, as plain JSON; nothing where states stay as and where they are."""
        found: dict[str, object] = {} if self.within else {"target": self.target.describe()}
        if self.mappings is not None:
            found["f"] = self.mappings.describe()
        return found

    def named(self, sweep: Sweep) -> Sweep:
        """The sweep, which says where states go and through what."""
        target = None if self.within else self.target.identity
        return replace(sweep, target_model=target, mapping=None if self.mappings is None else self.mappings.digest)

    @property
    def within(self) -> bool:
        """Whether states stay in one model."""
        return self.source is self.target

    @cached_property
    def by_digest(self) -> dict[str, Mapping]:
        """The mappings by what cells know of them."""
        found = self.mappings.by_pair.values() if self.mappings is not None else ()
        return {mapping.digest: mapping for mapping in found}

    def mapped(
        self, states: Float[Tensor, "row d_source"], maps: Sequence[str | None]
    ) -> Float[Tensor, "row d_target"]:
        """Each state through the mapping of that digest; None leaves it as it is."""
        if not any(maps):
            return states
        rows: dict[str | None, list[int]] = {}
        for row, digest in enumerate(maps):
            rows.setdefault(digest, []).append(row)
        made = torch.empty(len(states), self.target.d_model, dtype=torch.float32, device=states.device)
        for digest, at in rows.items():
            made[at] = states[at].float() if digest is None else self.by_digest[digest](states[at])
        return made
