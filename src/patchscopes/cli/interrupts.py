"""Ctrl-C, SIGTERM (docker stop, SLURM), SIGHUP (a closed terminal): each interrupts alike, and what is done is kept."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_INTERRUPTED = 130
# Signals come in pairs: shells, terminals and service managers send another one at once. What the first one set off,
# such as the closing of a file, must not be interrupted by the second.
PAIR_S = 3.0
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(slots=True)
class Interrupts:
    """The signals that this process was sent."""

    first: int | None = None
    _last_s: float = 0.0

    def install(self) -> None:
        """Take the signals from now on."""
        for number in SIGNALS:
            # A shell starts background jobs with SIGINT ignored; whoever sends one means it. Not so nohup's SIGHUP.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def code(self, code: int) -> int:
        """The exit code of a command that ended with `code`: 128 and the signal's number where it was interrupted."""
        return code if code != EXIT_INTERRUPTED or self.first is None else 128 + self.first

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is not None and now - self._last_s < PAIR_S:
            return
        self.first, self._last_s = self.first or number, now
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """While open, none of the signals interrupts: what the first one asked for is being written."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
