"""A run directory: what was appended is there, whatever happened; what is another run is refused."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from patchscopes.errors import PatchscopesWarning, RunChangedError, RunInUseError, StoreError
from patchscopes.results import row_to_json
from patchscopes.spec import Row
from patchscopes.store import Head, check_folder, open_run, open_writer, read_run, writer
from rows import FAILED, NEXT, make_row

MODEL = {"id": "tiny", "weights": "sha256:ab", "dtype": "float32", "device": "cpu"}
MADE_BY = {"runner": "engine", "versions": {"torch": "2.13"}, "commit": None}
HEAD = Head(
    sweep={"sources": ({"text": "I went to Spain"},), "decoding": {"max_new_tokens": 20}, "seed": 3},
    identity="sha256:ab|config:cd",
    model=MODEL,
    made_by=MADE_BY,
    n_requests=6,
    warnings=("beware",),
)
ROWS = [make_row(cell=f"c{n}", source_layer=n, text=f"text {n}") for n in range(4)] + [
    replace(FAILED, cell="c4"),
    replace(NEXT, cell="c5", text="\u2028 \x00é"),
]


def keep(folder: Path, *indices: int, head: Head = HEAD, rows: list[Row] = ROWS) -> None:
    """One session that writes these rows, a shard each; so that they stay apart, nothing is merged at its end."""
    with open_writer(folder, head) as store:
        for index in indices:
            store.append(index, rows[index])
            store.close_shard()


@pytest.fixture(autouse=True)
def _unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FULL_ROWS", 1)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "shards").iterdir())


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    keep(tmp_path / "run", 5, 0, 4)
    results = open_run(tmp_path / "run")
    assert list(results) == [ROWS[0], ROWS[4], ROWS[5]], "in the order of the request"
    assert not results.complete
    assert (results.model, results.spec["seed"], results.spec["runner"]) == (MODEL, 3, "engine")
    assert results.warnings == ("beware",)
    keep(tmp_path / "run", 1, 2, 3)
    results = open_run(tmp_path / "run")
    assert (list(results), results.complete) == (ROWS, True)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["complete"] is True


def test_what_json_and_tables_make_of_a_row_a_shard_makes_too(tmp_path: Path) -> None:
    odd = make_row(cell="c0", text="not UTF-8: \udcff", token_ids=(), target_positions=(), expected=False)
    nothing = make_row(**dict.fromkeys(("cell", "token", "text", "token_ids", "top", "entropy", "source_layer")))
    keep(tmp_path, 0, 1, rows=[odd, nothing])
    assert [row_to_json(row) for row in open_run(tmp_path)] == [row_to_json(row) for row in (odd, nothing)]
    assert open_run(tmp_path).to_arrow().to_pylist() == [row_to_json(row) for row in (odd, nothing)]


def test_a_writer_knows_what_is_done(tmp_path: Path) -> None:
    keep(tmp_path, 0, 4)
    with open_writer(tmp_path, HEAD) as store:
        assert {index: (row.cell, row.status) for index, row in store.done.items()} == {
            0: ("c0", "ok"),
            4: ("c4", "failed"),
        }
        assert store.stored() == {0: ROWS[0], 4: ROWS[4]}
        assert store.counts == {"ok": 1, "failed": 1}
        with pytest.raises(AssertionError):
            store.append(0, ROWS[0])
        with pytest.raises(AssertionError):
            store.append(1, replace(ROWS[1], status="skipped"))


def test_rows_reach_the_disk_by_themselves_in_time(tmp_path: Path) -> None:
    """Also where no row follows that could push them there, and before the writer ends."""
    with open_writer(tmp_path, HEAD) as store:
        store.append(2, ROWS[2])
        deadline = time.monotonic() + 20
        while not (found := read_run(tmp_path)).rows and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (found.rows, found.being_written, found.complete) == ({2: ROWS[2]}, True, False)
    assert not read_run(tmp_path).being_written


def test_an_interruption_keeps_what_was_appended(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_writer(tmp_path, HEAD) as store:
            store.append(1, ROWS[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(open_run(tmp_path)) == [ROWS[1]]


def test_a_shard_that_the_manifest_does_not_name_yet_is_taken_in(tmp_path: Path) -> None:
    """The state after a kill between two renames."""
    keep(tmp_path, 0)
    before = (tmp_path / "manifest.json").read_bytes()
    keep(tmp_path, 1)
    (tmp_path / "manifest.json").write_bytes(before)
    assert list(open_run(tmp_path)) == ROWS[:2]
    with open_writer(tmp_path, HEAD) as store:
        assert sorted(store.done) == [0, 1]
    assert len(json.loads((tmp_path / "manifest.json").read_text())["shards"]) == 2


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    parts = [tmp_path / ".manifest.json.part", tmp_path / "shards" / ".000009-ab.parquet.part"]
    for part in parts:
        part.write_bytes(b"half")
    assert list(open_run(tmp_path)) == ROWS[:1], "a reader neither minds nor removes them"
    assert all(part.exists() for part in parts)
    keep(tmp_path, 1)
    assert not any(part.exists() for part in parts)
    assert list(open_run(tmp_path)) == ROWS[:2]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_shard_is_named_and_its_rows_are_done_anew(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    keep(run, 0, 1, 2)
    bad = shards(run)[1]
    data = bad.read_bytes()
    if damage == "gone":
        bad.unlink()
    else:
        flipped = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        bad.write_bytes({"cut": data[:-9], "empty": b"", "flipped": flipped}[damage])
    results = open_run(run)
    assert (list(results), results.complete) == ([ROWS[0], ROWS[2]], False)
    assert any(bad.name in warning for warning in results.warnings)
    with pytest.warns(PatchscopesWarning, match=bad.name):
        keep(run, 1, 3, 4, 5)
    assert (list(open_run(run)), open_run(run).complete) == (ROWS, True)
    assert damage == "gone" or (run / "damaged" / bad.name).exists(), "it is set aside, for whoever wants to look"


def test_a_shard_of_another_run_is_not_taken_in(tmp_path: Path) -> None:
    keep(tmp_path / "run", 0)
    keep(tmp_path / "other", 3, head=replace(HEAD, identity="sha256:ef|config:cd"))
    foreign = shards(tmp_path / "other")[0]
    shutil.copy(foreign, tmp_path / "run" / "shards" / f"000007{foreign.name[6:]}")
    assert list(open_run(tmp_path / "run")) == ROWS[:1]
    with pytest.warns(PatchscopesWarning, match="000007.* of another run"):
        keep(tmp_path / "run", 3)
    assert list(open_run(tmp_path / "run")) == [ROWS[0], ROWS[3]]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_manifest_is_written_anew_from_the_shards(tmp_path: Path, damage: bytes) -> None:
    keep(tmp_path, 0, 3)
    (tmp_path / "manifest.json").write_bytes(damage)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_run(tmp_path)
    with pytest.warns(PatchscopesWarning, match="anew from the shards"), open_writer(tmp_path, HEAD) as store:
        assert sorted(store.done) == [0, 3]
    assert list(open_run(tmp_path)) == [ROWS[0], ROWS[3]]


def test_shards_of_another_run_without_their_manifest_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(RunChangedError, match="another specification or model"):
        keep(tmp_path, 1, head=replace(HEAD, sweep={**HEAD.sweep, "seed": 4}))
    assert len(shards(tmp_path)) == 1
    keep(tmp_path, 1)
    assert list(open_run(tmp_path)) == ROWS[:2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sweep": {**HEAD.sweep, "seed": 4}}, "seed: 3 there, 4 asked for"),
        ({"sweep": {**HEAD.sweep, "decoding": {"max_new_tokens": 9}}}, "decoding.max_new_tokens: 20 there, 9 asked"),
        ({"sweep": {**HEAD.sweep, "sources": ({"text": "x"},)}}, 'sources[0].text: "I went to Spain" there, "x" asked'),
        ({"sweep": {**HEAD.sweep, "new": None}}, "new: nothing there, null asked for"),
        ({"identity": "sha256:ef|config:cd"}, 'model.weights: "sha256:ab" there, "sha256:ef" asked for'),
        ({"model": {**MODEL, "dtype": "bfloat16"}}, 'model.dtype: "float32" there, "bfloat16" asked for'),
        ({"n_requests": 7}, "rows: 6 there, 7 asked for"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, change: dict[str, object], said: str) -> None:
    keep(tmp_path, 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunChangedError) as refused:
        keep(tmp_path, 1, head=replace(HEAD, **change))  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert str(refused.value).count("asked for") == 2, "this one difference and no other"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_without_a_row_may_become_another(tmp_path: Path) -> None:
    keep(tmp_path)
    other = replace(HEAD, sweep={**HEAD.sweep, "seed": 4})
    keep(tmp_path, 0, head=other)
    assert open_run(tmp_path).spec["seed"] == 4
    with pytest.raises(RunChangedError):
        keep(tmp_path, 1)


def test_other_software_is_warned_of_and_recorded(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    newer = replace(HEAD, made_by={**MADE_BY, "versions": {"torch": "2.14"}}, model={**MODEL, "device": "cuda:0"})
    with pytest.warns(PatchscopesWarning, match=r"torch 2\.13 → 2\.14, device cpu → cuda:0"):
        keep(tmp_path, 1, head=newer)
    results = open_run(tmp_path)
    assert [(s["versions"]["torch"], s["device"], s["rows"]) for s in results.spec["sessions"]] == [
        ("2.13", "cpu", 1),
        ("2.14", "cuda:0", 1),
    ]
    keep(tmp_path, 2, head=replace(newer, made_by={**newer.made_by, "runner": "reference"}))


def test_a_row_schema_of_another_version_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    text = (tmp_path / "manifest.json").read_text().replace("patchscopes.rows/", "patchscopes.rows/9")
    (tmp_path / "manifest.json").write_text(text)
    for use in (lambda: open_run(tmp_path), lambda: keep(tmp_path, 1)):
        with pytest.raises(StoreError, match="use the version that wrote it"):
            use()


def test_a_second_writer_is_refused_and_a_dead_one_is_none(tmp_path: Path) -> None:
    with open_writer(tmp_path, HEAD):
        for use in (lambda: keep(tmp_path, 0), lambda: check_folder(tmp_path)):
            with pytest.raises(RunInUseError, match="another process is writing"):
                use()
    hold = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); time.sleep(20)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunInUseError):
            keep(tmp_path, 0)
        assert read_run(tmp_path).being_written
        holder.kill()
    keep(tmp_path, 0)


def test_what_is_no_run_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such directory"):
        open_run(tmp_path / "absent")
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        open_run(tmp_path)
    (tmp_path / "thesis.tex").write_text("dear reader")
    for use in (lambda: keep(tmp_path, 0), lambda: check_folder(tmp_path)):
        with pytest.raises(StoreError, match=r"holds thesis\.tex"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file"):
        keep(tmp_path / "thesis.tex", 0)
    with pytest.raises(StoreError, match="cannot make"):
        keep(Path("/proc/run"), 0)


def test_many_shards_are_merged_and_no_row_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FULL_ROWS", 1000)
    monkeypatch.setattr(writer, "MAX_SMALL", 3)
    rows = [make_row(cell=f"c{n}", source_layer=n) for n in range(20)]
    head = replace(HEAD, n_requests=20)
    with open_writer(tmp_path, head) as store:
        for index in reversed(range(20)):
            store.append(index, rows[index])
            store.close_shard()
            assert len(shards(tmp_path)) <= 3
            assert len(open_run(tmp_path)) == 20 - index
    assert (len(shards(tmp_path)), list(open_run(tmp_path))) == (1, rows)


def crash_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the `at`-th change of the disk, counted from 0, the last: it and all later ones fail."""
    calls = iter(range(10**6))

    def guarded(name: str, change: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) >= at:
                raise OSError(5, f"crash in {name}")
            return change(*arguments, **options)  # type: ignore[operator]

        return call

    monkeypatch.setattr(Path, "replace", guarded("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", guarded("unlink", Path.unlink))
    monkeypatch.setattr(os, "fsync", guarded("fsync", os.fsync))


@pytest.mark.parametrize("at", range(0, 60, 2))
def test_a_crash_between_any_two_changes_of_the_disk_loses_no_closed_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(writer, "FULL_ROWS", 1000)
    monkeypatch.setattr(writer, "MAX_SMALL", 2)
    monkeypatch.setattr(writer, "MIN_INTERVAL_S", 60.0)
    monkeypatch.setattr(writer, "MAX_INTERVAL_S", 60.0)
    closed: list[int] = []
    with monkeypatch.context() as broken:
        crash_at(broken, at)
        with suppress(StoreError), open_writer(tmp_path, HEAD) as store:
            for index in range(6):
                store.append(index, ROWS[index])
                store.close_shard()
                closed.append(index)
    assert len(closed) < 6 or at > 20, "it came through without a crash"
    with open_writer(tmp_path, HEAD) as store:
        assert set(store.done) >= set(closed)
        assert store.stored() == {index: ROWS[index] for index in store.done}
        for index in set(range(6)) - set(store.done):
            store.append(index, ROWS[index])
    results = open_run(tmp_path)
    assert (list(results), results.complete, results.warnings) == (ROWS, True, ("beware",))
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_disk_ends_the_run_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        with open_writer(tmp_path, HEAD) as store:
            monkeypatch.setattr(os, "fsync", full)
            for _ in range(1000):
                store.append(1, ROWS[1])
                time.sleep(0.02)

    with pytest.raises(StoreError, match="No space left"):
        fill()
    monkeypatch.undo()
    assert list(open_run(tmp_path)) == [ROWS[0]]


def test_a_reader_never_sees_less_than_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While shards are closed and merged as fast as they can be."""
    monkeypatch.setattr(writer, "FULL_ROWS", 1000)
    monkeypatch.setattr(writer, "MAX_SMALL", 2)
    rows = [make_row(cell=f"c{n}") for n in range(150)]
    seen: list[int] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            found = read_run(tmp_path)
            assert not found.damaged
            seen.append(len(found.rows))

    with open_writer(tmp_path, replace(HEAD, n_requests=150)) as store:
        reader = threading.Thread(target=read)
        reader.start()
        for index, row in enumerate(rows):
            store.append(index, row)
            store.close_shard()
        ended.set()
        reader.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1, "it has read while the writer wrote"
