"""`patchscopes show`: what is in a run directory, also while it is being written."""

from collections import Counter
from typing import TYPE_CHECKING

import click

from patchscopes.cli.values import SELF_CONTAINED, chosen_format, output_options

if TYPE_CHECKING:
    from patchscopes.store import StoredRun


@click.command("show")
@click.argument("run", type=click.Path())
@output_options
def show_command(run: str, as_format: str | None, out: str | None) -> None:
    """Tell how far the run directory RUN is, with its first tables; or export its rows."""
    from patchscopes.cli.output import opened, write_provenance, write_results, write_row
    from patchscopes.store import read_run

    as_format = chosen_format(as_format, out)
    stored = read_run(run)
    results = stored.results()
    with opened(out) as file:
        for line in progress_lines(stored, run):
            # Beside a table it is what was asked for; beside data it is a message.
            click.echo(line, err=as_format != "table" or out is not None)
        if as_format == "jsonl":
            for row in results:
                write_row(row, file)
        elif results or as_format != "table":
            write_results(results, as_format, file, to_file=out is not None)
    if out is not None and as_format not in SELF_CONTAINED:
        write_provenance(results, out)


def progress_lines(stored: "StoredRun", name: str) -> list[str]:
    """How far a run is, its counts by status, its speed and what is wrong with it."""
    from patchscopes.cli.output import in_words
    from patchscopes.plan import duration

    total, done = stored.manifest.head.n_requests, len(stored.rows)
    state = (
        "complete" if stored.complete else "being written" if stored.being_written else "not complete, and no writer"
    )
    lines = [
        f"{name}: {done:,} of {total:,} rows ({done / max(total, 1):.1%}), {state}",
        f"rows: {in_words(Counter(row.status for row in stored.rows.values()))}",
    ]
    worked = [session for session in stored.manifest.sessions if session.rows]
    if worked:
        seconds, rows = sum(one.seconds for one in worked), sum(one.rows for one in worked)
        last = worked[-1].rows / max(worked[-1].seconds, 1e-9)
        left = f", {duration((total - done) / last)} left" if stored.being_written and done < total else ""
        sessions = f" in {len(worked)} sessions" if len(worked) > 1 else ""
        begun = f"begun {worked[0].started}"
        lines.append(f"speed: {last:,.1f} rows/s{left}; {rows:,} rows in {duration(seconds)}{sessions}, {begun}")
    lines.append(f"stored: {stored.n_shards:,} shards, {stored.n_bytes / 2**20:.1f} MiB")
    return [*lines, *(f"damaged: {damage}" for damage in stored.damaged)]
