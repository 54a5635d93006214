"""What a study found: findings with intervals, tables, figures, a page in words; and how it is written to a folder."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from patchscopes.analysis.intervals import Interval
from patchscopes.data import DataSet, Exclusion
from patchscopes.errors import OutputError
from patchscopes.provenance import commit, versions
from patchscopes.studies.setup import Setup

SCHEMA = "patchscopes.study/1"
# What of the provenance stands on the page, and how it is called there.
MADE_BY = {
    "model": "model",
    "target": "target model",
    "data": "data",
    "quick": "quick",
    "seed": "seed",
    "runner": "runner",
    "rows": "rows",
    "rows_kept": "rows kept from a run before",
    "seconds": "seconds, without those of rows kept",
    "commit": "commit",
    "versions": "versions",
}
STATISTICS = ("scipy", "scikit-learn", "statsmodels", "rouge-score", "pandas")


@dataclass(frozen=True, slots=True)
class Finding:
    """One number with its 95 % interval over subjects; `control` is what it stands beside, None where it is alone."""

    name: str
    estimate: float
    low: float
    high: float
    n_items: int
    n_subjects: int
    control: str | None
    about: str
    p: float | None = None

    @classmethod
    def of(
        cls, name: str, interval: Interval, about: str, *, control: str | None = None, p: float | None = None
    ) -> "Finding":
        """A finding with the numbers of `interval`."""
        numbers = interval.estimate, interval.low, interval.high, interval.n_items, interval.n_subjects
        return cls(name, *numbers, control, about, p)

    @property
    def interval(self) -> Interval:
        """Its numbers, as figures take them."""
        return Interval(self.estimate, self.low, self.high, self.n_items, self.n_subjects)

    @property
    def stands(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{shown(self.estimate)} ({shown(self.low)} to {shown(self.high)})"


@dataclass(frozen=True)
class Report:
    """A study's outcome. `tables` and `figures` go by the name of their file; `pages` hold Markdown."""

    study: str
    findings: Sequence[Finding]
    excluded: Sequence[Exclusion]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    pages: Mapping[str, str]
    provenance: Mapping[str, Any]
    notes: Sequence[str] = ()

    def finding(self, name: str, control: str | None = None) -> Finding:
        """The finding of that name, beside that control. Raises KeyError where there is none."""
        for finding in self.findings:
            if (finding.name, finding.control) == (name, control):
                return finding
        raise KeyError(f"{name!r} beside {control!r}")

    def summary(self) -> dict[str, Any]:
        """The summary as plain JSON: numbers that are none, or infinite, are null. `kind` tells entities from parts."""
        counts = Counter((exclusion.reason, exclusion.kind) for exclusion in self.excluded)
        return {
            "schema": SCHEMA,
            "study": self.study,
            "findings": [{key: _plain(value) for key, value in asdict(finding).items()} for finding in self.findings],
            "excluded": [{"reason": reason, "kind": kind, "count": n} for (reason, kind), n in counts.items()],
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def ending(self) -> str:
        """What follows the page where it is written: its figures, and what made it."""
        made = self.provenance
        lines = [
            "",
            "## Figures",
            "",
            *(f"![{name}](figures/{name}.png)" for name in self.figures),
            "",
            "## What made this",
            "",
        ]
        lines += [f"- {MADE_BY[key]}: {_listed(made[key])}" for key in MADE_BY if made.get(key) is not None]
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        """Write summary.json, the pages, tables (CSV and Parquet) and figures (PNG and SVG) to `out`."""
        try:
            for folder in (out, out / "tables", out / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
            for name, table in self.tables.items():
                table.to_csv(out / "tables" / f"{name}.csv", index=False, lineterminator="\n")
                table.to_parquet(out / "tables" / f"{name}.parquet", index=False)
            with rc_context({"svg.hashsalt": SCHEMA}):  # else the ids in an SVG are drawn anew each time
                for name, figure in self.figures.items():
                    figure.savefig(out / "figures" / f"{name}.png", dpi=150)
                    figure.savefig(out / "figures" / f"{name}.svg", metadata={"Date": None})
            for name, page in self.pages.items():
                end = self.ending() if name == "page" else ""
                (out / f"{name}.md").write_text(page + end, encoding="utf-8")
            summary = json.dumps(self.summary(), ensure_ascii=False, indent=1, allow_nan=False)
            (out / "summary.json").write_text(summary + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the report to {out}: {error}; give another folder with --out.") from error


def provenance_of(setup: Setup, *, data: DataSet[Any], design: Mapping[str, Any], began: float) -> dict[str, Any]:
    """What made a report (rule 22): the model, the data by its hash, the design with its thinning, versions, commit."""
    return {
        "model": setup.model.describe(),
        **({} if setup.target is None else {"target": setup.target.describe()}),
        "data": {"name": data.name, "source": data.source, "sha256": data.sha256, "n_read": data.n_read},
        "design": dict(design),
        "quick": setup.quick,
        "seed": setup.seed,
        "runner": setup.runner_name,
        "rows": {stage: dict(counts) for stage, counts in setup.counts.items()},
        "rows_kept": sum(setup.kept.values()),  # of a run before this one, in whose seconds they are not
        "seconds": round(time.monotonic() - began, 1),
        "versions": versions() | {name: version(name) for name in STATISTICS},
        "commit": commit(),
    }


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """The findings, a line each."""
    return pd.DataFrame([asdict(finding) for finding in findings])


def markdown(findings: Sequence[Finding]) -> str:
    """The findings as a table for a page."""
    rows = [
        (
            f.name,
            f.control or "",
            shown(f.estimate),
            f"{shown(f.low)} to {shown(f.high)}",
            "" if f.p is None else shown_p(f.p).removeprefix("= "),
            str(f.n_subjects),
        )
        for f in findings
    ]
    return markdown_table(("finding", "beside", "estimate", "95 % interval", "p", "entities"), rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of a page."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def framed(
    *, title: str, opening: str, found: Sequence[str], certainty: str, table: str = "", left_out: Sequence[str]
) -> str:
    """A study's page: what was asked, what was found, how sure it is, what was left out and why."""
    lines = [f"# {title}", "", opening, "", "## What was found", "", *found, "", "## How sure it is", "", certainty, ""]
    lines += [table, ""] if table else []
    return "\n".join([*lines, "## What was left out", "", *left_out]) + "\n"


def left_out(excluded: Mapping[str, int], notes: Sequence[str]) -> list[str]:
    """What was left out, as a list for a page: how many for which reason, and what the design does not run."""
    counted = [f"- {count} × {reason}" for reason, count in excluded.items()] or ["- nothing"]
    return [*counted, *(f"- {note}" for note in notes)]


def shown(value: float) -> str:
    """A number as pages show it: two decimals, a true minus; ∞ for what is never reached."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "never" if value > 0 else "−∞"
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def shown_p(p: float | None) -> str:
    """A p as pages show it, behind the letter: "= 0.0123", "< 0.0001" where no more is known, "not known" for none."""
    if p is None or math.isnan(p):
        return "not known"
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def _listed(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    total = Counter[str]()
    if all(isinstance(counts, Mapping) for counts in value.values()) and value:  # rows, by stage and status
        for counts in value.values():
            total.update(counts)
        return ", ".join(f"{n:,} {status}" for status, n in total.items())
    return ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
