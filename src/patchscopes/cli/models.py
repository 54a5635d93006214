"""`patchscopes models`: list, pull, check."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from patchscopes.cli.inspect import ADAPTER_HELP
from patchscopes.errors import HomeError

if TYPE_CHECKING:
    from patchscopes.yardstick import Yardstick


@click.group("models", invoke_without_command=True)
@click.pass_context
def models_group(context: click.Context) -> None:
    """List the registry models; `pull` fetches one, `check` proves that one obeys the semantics."""
    if context.invoked_subcommand is None:
        _list()


def _list() -> None:
    from patchscopes.models.pull import is_pulled
    from patchscopes.models.registry import DEFAULT_MODEL, REGISTRY
    from patchscopes.settings import Settings

    settings = Settings.from_env()
    try:
        folder = str(settings.home)
    except HomeError as error:
        folder = f"none, so that no model can be pulled: {error}"
        pulled = dict.fromkeys(REGISTRY, False)
    else:
        pulled = {name: is_pulled(name, settings) for name in REGISTRY}
    for name, entry in REGISTRY.items():
        state = "pulled" if pulled[name] else "not pulled"
        mark = " (default)" if name == DEFAULT_MODEL else ""
        click.echo(f"{name}{mark}: {entry.description}; {entry.licence}; {state}")
    click.echo(f"\nFolder: {folder.rstrip('.')}. Any path or Hugging Face hub id works as well.")


@models_group.command("pull")
@click.argument("name")
def pull_command(name: str) -> None:
    """Fetch a registry model; one that is there is checked whole, and fetched again where it is damaged."""
    from patchscopes.models.pull import pull_verified
    from patchscopes.settings import Settings

    folder = pull_verified(name, Settings.from_env(), notify=lambda message: click.echo(message, err=True))
    click.echo(str(folder))


@models_group.command("check")
@click.argument("name")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--adapter", default=None, help=ADAPTER_HELP)
@click.option("--revision", default=None, help="Branch, tag or commit on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let code that comes with a hub model run.")
def check_command(
    name: str, dtype: str, device: str, adapter: str | None, revision: str | None, trust_remote_code: bool
) -> int:
    """Prove, on every layer, that a model obeys the semantics; exit code 2 where it does not."""
    from patchscopes.agreement import NEEDED, agreement
    from patchscopes.cli.inspect import slow_way
    from patchscopes.models import LoadOptions, load_by_name
    from patchscopes.selfcheck import check_model
    from patchscopes.settings import Settings
    from patchscopes.trust import distrust

    options = LoadOptions(revision, trust_remote_code, dtype, device, adapter)
    model = load_by_name(name, options, Settings.from_env(), notify=lambda message: click.echo(message, err=True))
    if (slow := distrust(model)) is not None:
        click.echo(f"{slow} So the claims about batches and about logits are not checked.", err=True)
    report = check_model(model)
    click.echo(f"{model!r}, {model.fingerprint}")
    for finding in report.findings:
        verdict = "ok  " if finding.passed else "FAIL"
        click.echo(
            f"  {verdict} {finding.claim:<11} {finding.meaning} "
            f"(deviation {finding.deviation:.1e}{finding.unit}, allowed {finding.tolerance:.2g})"
        )
    if report.yardstick is not None:
        for line in _measured(report.yardstick, model.dtype_name):
            click.echo(line)
    agreed = True
    if report.passed and report.yardstick is not None:
        found = agreement(model)
        agreed = found.enough
        click.echo(
            f"  {'ok  ' if agreed else 'FAIL'} agreement   engine and reference give the same token in {found.same} of "
            f"{found.compared} ({found.rate:.0%}; rounding may part them, and fewer than {NEEDED} are no agreement)"
        )
    if slow := slow_way(model):
        click.echo(f"  {slow}")
    click.echo("obeys the semantics" if report.passed and agreed else "does not obey the semantics")
    return 0 if report.passed and agreed else 2


def _measured(found: "Yardstick", dtype: str) -> "Iterator[str]":
    """The yardstick as lines: each way of the model's own, the largest of theirs, and ours."""
    yield (
        f"  {dtype} rounds, so the model's own ways of running a text part: |Δ log-probability| of the 50 likeliest "
        f"tokens at {found.n_tokens} places, in nats"
    )
    stands_in = {
        "nothing": "the largest between any two of these",
        "all": "its own ways are one to the last digit: what the last digit does",
        "high": "the largest between any two of these; of the far ones, what the last digit does",
    }
    ways = [
        *(
            (name, spread, "gives something else: left out" if name in found.apart else "")
            for name, spread in found.routes.items()
        ),
        ("last digit", found.digit, "what the least rounding does"),
        ("theirs", found.theirs, stands_in[found.stands_in]),
        ("ours", found.ours, f"{found.ratio:.2f} times theirs"),
    ]
    yield f"    {'':<11} {'median':>8} {'0.99':>8}"
    for name, spread, said in ways:
        yield f"    {name:<11} {spread.median:>8.4f} {spread.high:>8.4f}  {said}".rstrip()
