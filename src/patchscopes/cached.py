"""Properties that are computed once.

Python 3.11's own hold one lock for all objects of a class while they compute, which a forked child inherits closed: it
would wait for ever where its parent was computing. From 3.12 on they hold none.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property:  # noqa: N801 (as the one whose place it takes)
        """A property that is computed at first use and kept; by two threads at once it may be computed twice."""

        def __init__(self, function: Callable[[Any], Any]) -> None:
            self._function, self.__doc__ = function, function.__doc__

        def __set_name__(self, _: type, name: str) -> None:
            self._name = name

        def __get__(self, instance: Any, _: type | None = None) -> Any:
            """Return what is kept, or compute it now; the property itself where a class asks."""
            if instance is None:
                return self
            kept = instance.__dict__
            if self._name not in kept:
                kept[self._name] = self._function(instance)
            return kept[self._name]


__all__ = ["cached_property"]
