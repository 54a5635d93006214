"""What a model is now, as far as it was looked at: its weights, structure and attachments, and what follows from them.

Whatever is made of a model (identities, functions that stand in for modules, findings of checks) holds as long as the
model is what it was. `current` looks, and takes the model as it is by now where it has changed; all that was made of it
is then gone, and made anew by whoever needs it (rule 0).
"""

import hashlib
import json
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchscopes.errors import UnsupportedModelError
from patchscopes.models.attached import Attached, attached
from patchscopes.models.hasher import Hasher
from patchscopes.models.tree import Trees
from patchscopes.models.watch import Change, Watch, loose_tensors, tensors, walk

# Of a config: where it was read, and by what, and what cells record themselves.
INDECISIVE = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "eos_token_id"}
)


# What a thing that is attached is known by, whatever it computes with.
Key = tuple[str, str, str, int]


class Now:
    """A model as it was when it was last looked at.

    Attributes: `watch` (its structure and samples of its weights), `attached` (what is of the caller's), `epoch` (how
    often it was taken anew), `made` (what was made of it, by type), `trees` (all that lend private trees of it).
    """

    def __init__(self, hf: PreTrainedModel, id: str, fingerprint: Callable[[], str]) -> None:
        self.hf, self.id = hf, id
        self.watch = Watch(hf)
        self.attached: tuple[Attached, ...] = attached(hf, self.watch.functions)
        self._left = self.attached  # as the last run left them
        self.moving: set[Key] = set()
        self.epoch = 0
        self.made: dict[type, Any] = {}
        self.trees: weakref.WeakSet[Trees] = weakref.WeakSet()
        self.lock = threading.RLock()
        _every.add(self)
        self._hash = fingerprint
        self._fingerprint: str | None = None
        self._loaded_buffers = self._buffers = _hash_of_buffers(hf)
        self._as_loaded: str | None = None
        self._structure: str | None = None

    @property
    def fingerprint(self) -> str:
        """What the weights are: a hash that is computed at first use (about 1 GB/s) and kept until they change."""
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def identity(self, variant: str | None) -> str:
        """Return fingerprint and config, and behind them what a model as loaded does not have.

        That is a change of structure, what is attached, and the name that the caller gives it.
        """
        config = self.hf.config.get_text_config(decoder=True).to_dict()
        decisive = {key: value for key, value in config.items() if key not in INDECISIVE}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
        return "|".join([self.fingerprint, f"config:{digest[:16]}", *self.beside(variant)])

    def beside(self, variant: str | None) -> list[str]:
        """Return what a model as loaded has not: other buffers or structure, what is attached, a name for that."""
        parts: list[str] = []
        if self._buffers != self._loaded_buffers:
            parts.append(f"buffers:{self._buffers}")
        if self._structure is not None:
            parts.append(f"structure:{self._structure}")
        if named := [one for one in self.attached if one.hashed or variant is None]:
            told = "|".join(f"{one.what} {one.path} {one.name} {one.digest}" for one in named)
            parts.append(f"attached:{hashlib.sha256(told.encode()).hexdigest()[:16]}")
        if variant is not None:
            parts.append(f"variant:{variant}")
        return parts

    def current(self, *, content: bool) -> bool:
        """Look whether the model is what it was; where it is not, take it as it is by now and return False.

        Raises UnsupportedModelError where it cannot be run as it is.
        """
        with self.lock:  # threads that meet one change take the model anew once
            changes = self.watch.changes(content=content)
            if changes:
                self.renew(changes)
            self._refuse_training()
            before, self.attached = self.attached, attached(self.hf, self.watch.functions)
            if self.attached == before:
                return not changes
            self._forget()
            return False

    def _forget(self) -> None:
        """Let go of what followed from things attached that are no longer what they were.

        Copies of modules hold attributes as these were. What was found of how things act holds while they act so.
        """
        for trees in list(self.trees):
            trees.forget()
        if self._left != self.attached:
            self._left, self.moving = self.attached, set()
            self.made = {kind: one for kind, one in self.made.items() if not getattr(kind, "of_attached", False)}

    def changes(self) -> list[Change]:
        """Return what differs from what the model was when it was last looked at, while it runs."""
        found = self.watch.changes(attributes="none" if self.attached else "unhooked")
        if self.attached:
            start = time.perf_counter()
            found += self._attached_changes()
            self.watch.look_s += time.perf_counter() - start
        return found

    def _attached_changes(self) -> Iterator[Change]:
        """Yield what is attached and computes with something else, unless it is what changes by itself as it runs."""
        now = _by_key(attached(self.hf, self.watch.functions))
        for key, before in _by_key(self.attached).items():
            if key in now and key not in self.moving and now[key].digest != before.digest:
                yield Change("hooks", f"{before} computes with something else")

    @contextmanager
    def running_attached(self) -> Iterator[None]:
        """Find out what of the things attached changes by itself: what counts and records while the context runs it."""
        before = _by_key(attached(self.hf, self.watch.functions))
        yield
        after = _by_key(attached(self.hf, self.watch.functions))
        self.moving |= {key for key in before.keys() & after.keys() if before[key].digest != after[key].digest}
        self.ran()

    def ran(self) -> None:
        """Take note that what is attached has run: what changes by itself meanwhile was not changed by a caller."""
        if self.moving:
            with self.lock:
                now = _by_key(attached(self.hf, self.watch.functions))
                before = _by_key(self._left)
                self._left = tuple(now.get(key, one) if key in self.moving else one for key, one in before.items())

    def renew(self, changes: Sequence[Change]) -> None:
        """Take the model as it is by now."""
        kinds = {change.kind for change in changes}
        self.epoch += 1  # first: whoever looks by the new watch must know that it is another
        before, self.watch = self.watch, Watch(self.hf)
        self.attached = attached(self.hf, self.watch.functions)
        self._left, self.moving = self.attached, set()
        if "structure" in kinds:
            self._as_loaded = self._as_loaded or _digest(before)
            now = _digest(self.watch)
            self._structure = None if now == self._as_loaded else now
        if "weights" in kinds:
            self._hash, self._fingerprint = partial(memory_hash, self.hf), None
            self._buffers = _hash_of_buffers(self.hf)
        self.made = {}

    def _refuse_training(self) -> None:
        """Raise UnsupportedModelError where a module is in training mode: dropout would make every run different."""
        if found := self.watch.training:
            raise UnsupportedModelError(
                f"{self.id} is in training mode ({len(found):,} modules, such as {found[-1]}), where dropout makes "
                "every run different; call eval() on the model, and train() again afterwards."
            )


# Their locks are made anew in a forked child: a thread that held one stayed in the parent.
_every: weakref.WeakSet[Now] = weakref.WeakSet()


def _unlock() -> None:
    for now in list(_every):
        now.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def _by_key(found: Sequence[Attached]) -> dict[Key, Attached]:
    """Return things by kind, place, name and, of several alike, their number: one factory may make several hooks."""
    counts = Counter[tuple[str, str, str]]()
    by_key: dict[Key, Attached] = {}
    for one in found:
        alike = one.what, one.path, one.name
        by_key[*alike, counts[alike]] = one
        counts[alike] += 1
    return by_key


def _digest(watch: Watch) -> str:
    """Return a digest of the structure that was seen: classes and plain attributes, by path."""
    hasher = Hasher()
    for path, kind, values in watch.describe():
        hasher.add((path, kind, sorted(values)))
        for name in sorted(values):
            hasher.add(values[name])
    for one in sorted(watch.functions, key=lambda one: one.place):
        hasher.add((one.place, one.function))
    return hasher.digest()


def memory_hash(hf: PreTrainedModel) -> str:
    """Return the fingerprint of weights that are in memory, wherever from: "sha256:…" over all tensors."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in hf.state_dict().items()}
    elsewhere = {name for name, tensor in state.items() if tensor.device.type == "meta"}
    if elsewhere:
        state |= {path: tensor for path, tensor in tensors(hf) if path in elsewhere}
    return f"sha256:{hash_tensors(state)}"


def _hash_of_buffers(hf: PreTrainedModel) -> str:
    """Return the hash of the tensors that no file and no state dict has: angles, scales, masks."""
    names = {
        f"{path}.{name}" if path else name for path, module in walk(hf) for name in module._non_persistent_buffers_set
    } | {path for path, _ in loose_tensors(hf)}
    hasher = Hasher()  # which takes tensors of any kind
    hasher.add(sorted({path: tensor for path, tensor in (*tensors(hf), *loose_tensors(hf)) if path in names}.items()))
    return hasher.digest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.device.type == "meta":
            raise UnsupportedModelError(
                f"weights of the model in memory are elsewhere ({name} is on the meta device), so it cannot be told "
                "from others; load it without offloading to disk."
            )
        digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
