"""The standard streams as they may be found: closed, their reader gone, not blocking, in an encoding that lacks signs.

Messages on standard error never end a command: what cannot be written is dropped. Standard output raises what is wrong
with it, and signs that its encoding lacks are written as escapes, which `Escapes` counts.
"""

import codecs
import io
import os
import select
import sys
from dataclasses import dataclass
from typing import Any, TextIO, cast

from patchscopes.errors import OutputError

# ASCII by another name: by its own, click would take the stream for a mistake and write UTF-8 past it.
PLAIN_ASCII = "ascii_as_asked"


@dataclass(slots=True)
class Escapes:
    """An error handler of codecs, which writes what an encoding lacks as escapes and counts what it wrote so."""

    encoding: str
    n: int = 0

    def __call__(self, error: UnicodeError) -> tuple[str | bytes, int]:
        """Return the escapes of what cannot be encoded, and where to go on."""
        assert isinstance(error, UnicodeEncodeError)
        self.n += error.end - error.start
        return codecs.backslashreplace_errors(error)


def prepare_streams() -> Escapes:
    """Make the standard streams fit to be written to, whatever state they are in; return the count of escapes."""
    # A file that is opened later must not get the number of a closed stream: what is printed would go into it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)  # as standard streams are
    os.close(number)
    escapes = Escapes("none" if sys.stdout is None else sys.stdout.encoding)
    codecs.register_error("patchscopes", escapes)
    codecs.register(_plain_ascii)
    if sys.stdout is None:
        sys.stdout = cast("TextIO", _Closed())
    else:
        sys.stdout = _writer(sys.stdout, _Waiting, "patchscopes")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open as long as the process
    else:
        sys.stderr = _writer(sys.stderr, _Forgiving, "backslashreplace")
    return escapes


def _plain_ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII, where it is asked for by that name."""
    ascii_codec = codecs.lookup("ascii")
    parts = ascii_codec.streamreader, ascii_codec.streamwriter, ascii_codec.incrementalencoder
    return (
        codecs.CodecInfo(ascii_codec.encode, ascii_codec.decode, *parts, ascii_codec.incrementaldecoder, name)
        if name == PLAIN_ASCII
        else None
    )


def is_closed(stream: TextIO) -> bool:
    """Return whether this is a standard output that was closed when the process began."""
    return isinstance(stream, _Closed)


def abandon_output() -> None:
    """Send what is left in the buffer of standard output nowhere: its reader has gone, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Waiting(io.FileIO):
    """A stream that waits where it would block: a terminal or pipe that others have set so."""

    def write(self, data: Any, /) -> int:
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


class _Forgiving(_Waiting):
    """A stream that loses what it cannot write."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Closed(io.TextIOBase):
    """Standard output where there is none."""

    def write(self, _: str, /) -> int:
        raise OutputError("standard output is closed, so that there is nowhere to write to; give a file, as by --out.")


def _writer(stream: TextIO, kind: type[io.FileIO], errors: str) -> TextIO:
    """The same stream over a file of `kind`; as it is where it is no plain file (a console of Windows)."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # there is no buffer between them where Python runs unbuffered
    if type(raw) is not io.FileIO or not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding = stream.encoding
    if codecs.lookup(encoding).name == "ascii":
        # The C locale says nothing of an encoding, as Python's UTF-8 mode has it.
        encoding = PLAIN_ASCII if os.environ.get("PYTHONIOENCODING") else "utf-8"
    stream.flush()
    file = io.BufferedWriter(kind(raw.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, encoding, errors, line_buffering=stream.line_buffering or stream.write_through)
