"""Is the model that a run began with still there? Asked before the first row, between waves, and at the end (rule 0).

Structure and samples of content are compared each time, all of the content where a run lasts fifty times as long as
that takes, and numbers once a minute. Between two looks there is time for fifty of them, so that all of it costs two
percent at the most.
"""

import time
from collections.abc import Sequence

from patchscopes.errors import ModelChangedError
from patchscopes.foreign import running
from patchscopes.mappings import Transfer
from patchscopes.proof import disproof

# A look may take this share of the time since the last one.
SHARE = 1 / 50
MIN_INTERVAL_S = 0.02
NUMBERS_EVERY_S = 60.0
MAX_NAMED = 3
# Of ranges of rows: beyond them an error's `rows` has all.
MAX_RANGES = 20


class Guard:
    """Watches the models of a run, which are to be what they were at `epochs`; where it `compares`, numbers too."""

    def __init__(self, transfer: Transfer, epochs: Sequence[int], *, compares: bool) -> None:
        self._models, self._epochs, self._compares = transfer.models, tuple(epochs), compares
        self._looked = self._compared = self._hashed = time.monotonic()
        self._has_hashed = False
        self._hash_s = sum(model.watch.probes.hash_s for model in self._models)

    @property
    def due(self) -> bool:
        """Return whether it is time for another look."""
        look_s = sum(model.watch.look_s for model in self._models)
        return time.monotonic() - self._looked >= max(look_s / SHARE, MIN_INTERVAL_S)

    def hold(self, given: Sequence[int], *, kept: bool) -> None:
        """Look at the models. Raises ModelChangedError where one has changed since the run began.

        `given` are the rows since the last look that held, which the message names; `kept` says whether a run directory
        would have kept them.
        """
        changed = self._changes()
        self._looked = time.monotonic()
        if changed:
            raise ModelChangedError(_told(changed, given, kept=kept), tuple(sorted(given)))

    def holds(self) -> bool:
        """Return whether the models are what they were, as far as structure and samples tell."""
        return not self._changes(all_of_it=False)

    def _changes(self, *, all_of_it: bool = True) -> list[str]:
        found: list[str] = []
        for model, epoch in zip(self._models, self._epochs, strict=True):
            found += [f"{model.id}: {change.text}" for change in model.changes()]
            if model.epoch != epoch:  # after them: they may have been told of the model as another call has met it
                found.append(f"{model.id} was changed, and another call has met it as it is now")
        now = time.monotonic()
        if found or not all_of_it:
            return found
        # At half of the time first: with what is hashed then, later hashes are compared.
        if (now - self._hashed) * SHARE >= self._hash_s * (1.0 if self._has_hashed else 0.5):
            self._has_hashed = True
            found += [change.text for model in self._models for change in model.watch.hashed_changes()]
            self._hashed = time.monotonic()
        if self._compares and now - self._compared >= NUMBERS_EVERY_S:
            for model in self._models:
                with running(model.id):
                    found += [f"{model.id}: {said}"] if (said := disproof(model)) else []
            self._compared = time.monotonic()
        return found


def _told(changed: Sequence[str], given: Sequence[int], *, kept: bool) -> str:
    more = f", and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    rows = f"Rows {_ranges(given)} were given since the model was last seen unchanged" if given else "No row was given"
    folder = " and are not kept; those before are, and the same call goes on from there" if kept and given else ""
    return (
        f"the model changed while it ran: {'; '.join(changed[:MAX_NAMED])}{more}. {rows}{folder}. Do not change a "
        "model during a run; the next call takes it as it is now."
    )


def _ranges(rows: Sequence[int]) -> str:
    """Row numbers in short: "3 to 7, 9"."""
    parts: list[list[int]] = []
    for row in sorted(rows):
        if parts and row == parts[-1][1] + 1:
            parts[-1][1] = row
        else:
            parts.append([row, row])
    shown = [f"{first}" if first == last else f"{first} to {last}" for first, last in parts[:MAX_RANGES]]
    more = f" and {sum(last - first + 1 for first, last in parts[MAX_RANGES:]):,} more (the error's `rows`)"
    return ", ".join(shown) + (more if len(parts) > MAX_RANGES else "")
