"""`patchscopes run`: a specification file in, a run directory out."""

import time

import click

from patchscopes.cli.interrupts import EXIT_INTERRUPTED


@click.command("run")
@click.argument("spec", type=click.Path())
@click.option("--out", required=True, help="The run directory: it keeps rows as they finish.")
@click.option("--memory", default=None, metavar="SIZE", help="What it may take, such as 8GiB, before that of SPEC.")
@click.option("--explain", is_flag=True, help="Say what remains to be done, and how long it takes here; run nothing.")
def run_command(spec: str, out: str, memory: str | None, explain: bool) -> int:
    """Run the specification in SPEC (TOML, YAML or JSON); the same command again does only what remains.

    Its keys are model, adapter, revision, dtype, device, trust_remote_code, sources or sources_file, and the options of
    patchscopes inspect with _ in place of -, candidates as a list, paths relative to SPEC. Rows are kept in --out as
    they finish; patchscopes show reads them.
    """
    from patchscopes.store import check_folder

    check_folder(out)
    from patchscopes import api
    from patchscopes.cli.inspect import explain_work, load_named, load_target
    from patchscopes.cli.output import in_words
    from patchscopes.cli.progress import announce, progress
    from patchscopes.sizes import parse_bytes
    from patchscopes.specfile import read_spec

    asked = read_spec(spec)
    budget = {} if memory is None else {"memory_bytes": parse_bytes(memory)}
    model = load_named(asked.model, asked.load_options)
    options = {**asked.options, **budget}
    if asked.target_model is not None:
        options["target_model"] = load_target(asked.target_model, asked.load_options)
    inspection = api.prepare(model, asked.sources, run=out, **options)
    if explain:
        explain_work(inspection)
        return 0
    start, interrupted = time.monotonic(), False
    with inspection.session() as session:
        announce(session)
        try:
            with progress(session) as advance:
                for _, row in session.rows():
                    advance(row)
        except KeyboardInterrupt:
            interrupted = True
    assert session.writer is not None
    total = session.writer.counts.total()
    click.echo(
        f"{total:,} of {len(inspection.requests):,} rows ({in_words(session.writer.counts)}) are in {out}; "
        f"{total - session.n_kept:,} were done now, in {time.monotonic() - start:.1f} s",
        err=True,
    )
    click.echo(
        "interrupted; the same command goes on from here" if interrupted else f"see them with: patchscopes show {out}",
        err=True,
    )
    return EXIT_INTERRUPTED if interrupted else 0
