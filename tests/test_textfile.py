"""What a text file is, and what is no text file: it is named as what it is, with what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchscopes.textfile import lines_of, parsed, text_of


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "the cat")
    return file.getvalue()


def table(kind: str) -> bytes:
    sink, made = pa.BufferOutputStream(), pa.table({"text": ["the cat"]})
    if kind == "parquet":
        pq.write_table(made, sink)
    else:
        with pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)
    return bytes(sink.getvalue())


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


NOT_TEXT = {
    "utf-16": ("the cat\n".encode("utf-16"), "is UTF-16, not UTF-8 text; convert it, e.g. iconv -f utf-16 -t utf-8"),
    "utf-16-be": (b"\xfe\xff" + "the cat".encode("utf-16-be"), "is UTF-16"),
    "utf-16-le, no mark": ("the café\n".encode("utf-16-le"), "is UTF-16"),
    "utf-16-be, no mark": ('{"text": "the cat"}\n'.encode("utf-16-be"), "is UTF-16"),
    "utf-32": ("the cat".encode("utf-32"), "is UTF-32"),
    "utf-32-be, no mark": ("the cat".encode("utf-32-be"), "is UTF-32"),
    "utf-32-le, no mark": ("the cat".encode("utf-32-le"), "is UTF-32"),
    "gzip": (gzip.compress(b"the cat"), "is a gzip archive, not UTF-8 text; unpack it"),
    "bzip2": (bz2.compress(b"the cat"), "is a bzip2 archive"),
    "xz": (lzma.compress(b"the cat"), "is an xz archive"),
    "zip": (zipped(), "is a ZIP archive (as .xlsx"),
    "parquet": (table("parquet"), "is a Parquet table, not UTF-8 text; write its texts to JSONL"),
    "arrow": (table("arrow"), "is an Arrow table"),
    "numpy": (array(), "is a NumPy array"),
    "pickle": (pickle.dumps(["the cat", b"\xff"]), "is a Python pickle"),
    "binary": (b"the \x00 cat", "is no text file (it holds null bytes)"),
    "latin-1": (b"the cat\ncaf\xe9\n", "is not UTF-8: byte 0xe9 in line 2; convert it, e.g. iconv -f latin1"),
    "latin-1, marked": (b"\xef\xbb\xbfcaf\xe9", "is not UTF-8: byte 0xe9 in line 1"),
}


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_what_is_no_text_is_named(kind: str) -> None:
    data, said = NOT_TEXT[kind]
    with pytest.raises(ValueError, match=r".") as caught:
        text_of(data)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "text", ["BZh is a word", "ORC\n", "PAR1 of the game", "%PDF", "GGUF\ncat", "PK", "", "é\u2028"]
)
def test_texts_that_begin_like_other_files_are_texts(text: str) -> None:
    assert text_of(text.encode()) == text_of(b"\xef\xbb\xbf" + text.encode()) == text


def test_lines_end_at_line_feeds_alone() -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    assert lines_of(f"{odd}\nthe cat\r\n\nend") == [odd, "the cat", "", "end"]
    assert lines_of("") == lines_of("\n")[1:] == []


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the key 'a' is given twice"):
        parsed('{"b": [{"a": 1, "a": 1}]}')
    with pytest.raises(json.JSONDecodeError):
        parsed("{")
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed("[" * 200_000)
