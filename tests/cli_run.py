"""The command line in this process: arguments in; code, output and messages out."""

from dataclasses import dataclass

import pytest

from patchscopes.cli.main import run as run_cli


@dataclass(frozen=True, slots=True)
class Run:
    """What a command did."""

    code: int
    out: str
    err: str


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `patchscopes` with `arguments`."""
    capsys.readouterr()
    code = run_cli(arguments)
    captured = capsys.readouterr()
    return Run(code, captured.out, captured.err)
