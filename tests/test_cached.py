"""Properties that are computed once: kept, and without a lock that a forked child could inherit closed."""

import os
import signal
import threading
from typing import Any

import pytest

from patchscopes.cached import cached_property


class Slow:
    """Whose property waits while `waits`, and is computed so often."""

    def __init__(self, *, waits: bool = False) -> None:
        self.waits, self.began, self.may_end, self.n = waits, threading.Event(), threading.Event(), 0

    @cached_property
    def value(self) -> int:
        """A number."""
        self.began.set()
        if self.waits:
            self.may_end.wait()
        self.n += 1
        return self.n


def test_it_is_computed_once_for_each_object_and_again_where_it_is_taken_away() -> None:
    one, other = Slow(), Slow()
    assert (one.value, one.value, other.value) == (1, 1, 1)
    del one.__dict__["value"]
    assert one.value == 2
    described: Any = Slow.value
    assert described.__doc__ == "A number."


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_what_its_parent_was_computing() -> None:
    slow = Slow(waits=True)
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    slow.began.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if Slow().value == 1 else 1)
    try:
        assert os.waitpid(child, 0)[1] == 0
    finally:
        slow.may_end.set()
        thread.join()
