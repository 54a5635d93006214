"""Transformers talks on standard error as it loads; a library does not print."""

import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr
from typing import TypeVar
from unittest import mock

from transformers.utils import logging as transformers_logging

T = TypeVar("T")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the log lines and progress bars of transformers off the terminal, then leave its settings as they were.

    One of its bars is a bare tqdm that no setting turns off, hence the redirection.
    """
    with _quiet.lock:
        if _quiet.n == 0:
            _quiet.stack.enter_context(_quieted())
        _quiet.n += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.n -= 1
            if _quiet.n == 0:
                _quiet.stack.close()


class _Quiet:
    """A count of the threads that load: the first one quiets transformers, and the last one restores it."""

    def __init__(self) -> None:
        self.n, self.lock, self.stack = 0, threading.Lock(), ExitStack()


_quiet = _Quiet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_quiet.__init__)  # type: ignore[misc]


@contextmanager
def _quieted() -> Iterator[None]:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), _without_docstrings():
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _without_docstrings() -> AbstractContextManager[object]:
    """Under `python -OO` nothing has a docstring, and transformers cannot import a model: it puts theirs together."""
    if sys.flags.optimize < 2:
        return nullcontext()
    module = sys.modules["transformers.utils.auto_docstring"]  # the package has a function of the same name
    return mock.patch.multiple(module, auto_method_docstring=_as_it_is, auto_class_docstring=_as_it_is)


def _as_it_is(thing: T, **_: object) -> T:
    return thing
