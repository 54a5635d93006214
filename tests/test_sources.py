"""Sources in files: lines, JSONL, JSON arrays, as other programs write them."""

from pathlib import Path

import pandas as pd
import pytest

from patchscopes.errors import PatchscopesWarning, SourceError
from patchscopes.sources import read_sources_file, source_from
from patchscopes.spec import InspectionPrompt, Source


def read(folder: Path, data: str | bytes) -> list[Source]:
    file = folder / "sources"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_sources_file(str(file))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    odd = "page\x0cbreak\u2028next\x85line"
    assert read(tmp_path, f"{odd}\r\nhello\n") == [Source(odd), Source("hello")]
    assert read(tmp_path, f'{{"text": "{odd.replace(chr(12), "")}"}}\n{{"text": "b"}}') == [
        Source(odd.replace("\x0c", "")),
        Source("b"),
    ]


def test_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    with pytest.warns(PatchscopesWarning, match="3 blank lines are left out; 2 sources remain"):
        assert read(tmp_path, "\nthe cat\n \t\n\nhello\n") == [Source("the cat"), Source("hello")]
    with pytest.warns(PatchscopesWarning, match="1 blank line is left out"):
        assert read(tmp_path, '{"text": "a"}\n\n{"text": ""}\n') == [Source("a"), Source("")]
    with pytest.raises(SourceError, match="line 3 of"), pytest.warns(PatchscopesWarning):
        read(tmp_path, '{"text": "a"}\n\n{"text": 3}\n')


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    """It writes every key of every row, null where there is none, and whole numbers as fractions beside them."""
    frame = pd.DataFrame(
        [{"text": "the cat", "at": 1, "expect": "x"}, {"text": "hello", "prompt": {"text": "a {}", "chat": None}}]
    )
    assert '"at":1.0' in (lines := frame.to_json(orient="records", lines=True))
    wanted = [Source("the cat", at=1, expect=("x",)), Source("hello", prompt=InspectionPrompt("a {}"))]
    assert read(tmp_path, lines) == read(tmp_path, frame.to_json(orient="records")) == wanted
    nothing = dict.fromkeys(("at", "expect", "item", "kind", "candidates", "split", "mask", "prompt"))
    assert source_from({"text": "a", **nothing}, "here") == Source("a")
    for wrong in ({"text": None}, {"text": "a", "at": 1.5}, {"text": "a", "at": float("nan")}, {"text": "a", "x": 1}):
        with pytest.raises(SourceError, match="here"):
            source_from(wrong, "here")


@pytest.mark.parametrize(
    "data",
    [
        '{"text": "a", "at": 1, "at": 2}\n',
        '[{"text": "a", "expect": ["b"], "expect": ["c"]}]',
        '{"text": "a", "text": "b"}',
    ],
)
def test_equal_keys_are_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(SourceError, match="is given twice; mend it"):
        read(tmp_path, data)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="sources is UTF-16, not UTF-8 text; convert it"):
        read(tmp_path, "the cat\n".encode("utf-16"))
    with pytest.raises(SourceError, match="sources is a gzip archive"):
        read(tmp_path, b"\x1f\x8b\x08\x00abc")
