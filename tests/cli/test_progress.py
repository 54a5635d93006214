"""Progress: what is counted, what is told, and no more lines than one in ten seconds."""

from patchscopes.cli.progress import LINE_EVERY_S, Progress
from patchscopes.plan import duration
from rows import make_row


def test_lines_come_every_ten_seconds_and_count_cells_apart_from_rows() -> None:
    now, said = 0.0, []
    state = Progress(100, 300, 100, LINE_EVERY_S, lambda state: said.append(str(state)), clock=lambda: now)
    for second in range(50):
        now = second + 1.0
        state.advance(make_row(cell=f"c{second}"))
        state.advance(make_row(cell=f"c{second}", control="zero"))
    assert said == [
        "119 of 300 rows, 1.0 cells/s, 1 min 30 s left",
        "139 of 300 rows, 1.0 cells/s, 1 min 20 s left",
        "159 of 300 rows, 1.0 cells/s, 1 min 10 s left",
        "179 of 300 rows, 1.0 cells/s, 1 min 0 s left",
        "199 of 300 rows, 1.0 cells/s, 50 s left",
    ]


def test_rows_that_need_no_run_are_no_cells() -> None:
    now, said = 0.0, []
    state = Progress(0, 4, 2, 0.0, lambda state: said.append(str(state)), clock=lambda: now)
    now = 2.0
    state.advance(make_row(status="inert"))
    state.advance(make_row(cell=None, status="failed"))
    assert said[-1] == "2 of 4 rows, 0.0 cells/s, time left not known yet"


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.0, 60.0, 3599.0, 7500.0)] == [
        "0.4 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 5 min",
    ]
