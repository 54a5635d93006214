"""The report of multi-hop: figures and the page in words."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import verdict
from patchscopes.studies.multi_hop.design import COT, DRAWS, METHODS, N_FOLDS, TEXTS, THOUGHTS
from patchscopes.studies.multi_hop.findings import By
from patchscopes.studies.multi_hop.outcome import Outcome
from patchscopes.studies.report import Finding, framed, markdown_table, shown, shown_p

NOTE = "Bars: 95 % intervals over bridges."


def figures(findings: Sequence[Finding], grid: pd.DataFrame) -> dict[str, Figure]:
    """Texts beside methods; the gains; each method beside its controls; hits by placement."""
    by = {(finding.name, finding.control): finding for finding in findings}
    answered = [Bar(f.name.removeprefix("text/"), f.interval) for f in findings if f.name.startswith("text/")]
    answered += [Bar(METHODS[name], by[f"chosen/{name}", None].interval) for name in METHODS]
    found = {
        "answered": bars(answered, title="queries answered", x_label="share of queries", note=NOTE),
        "gains": bars(
            [
                Bar(f"{METHODS[f.name.removeprefix('gain/')]} − {f.control}", f.interval)
                for f in findings if f.name.startswith("gain/")
            ],
            title="what a method gains over a text", x_label="share of queries", note=NOTE,
        ),
        "exists": bars(
            [
                Bar(label, by[f"exists/{name}", control].interval)
                for name in METHODS
                for control, label in ((None, f"{METHODS[name]}: some (ℓ, ℓ*)"), ("shuffled", "  minus shuffled"))
            ],
            title="the paper's score, and what of it is left", x_label="share of queries", note=NOTE,
        ),
    }  # fmt: skip
    for name, label in METHODS.items():
        found[f"controls-{name}"] = bars(
            [
                Bar(f"minus {f.control}" if f.control else "answered", f.interval)
                for f in findings
                if f.name == f"chosen/{name}"
            ],
            title=label,
            x_label="share of queries",
            note=NOTE,
        )
        lines = grid[grid.method == name]
        curves = [Curve.of(f"ℓ* = {star}", part) for star, part in lines.groupby("target_layer")]
        found[f"placements-{name}"] = draw([Panel(label, curves, "hits minus shuffled", zero=0.0)], note=NOTE)
    return found


def page(
    outcome: Outcome, findings: Sequence[Finding], tables: tuple[pd.DataFrame, pd.DataFrame], left_out: Sequence[str]
) -> str:
    """What was found, how sure it is, what was left out and why. `tables`: by region, and by type."""
    regions, types = tables
    by = {(finding.name, finding.control): finding for finding in findings}
    queries, design = outcome.queries, outcome.queries.design
    return framed(
        title=f"Multi-hop in {design.setup.model.id}",
        opening=(
            "Does a Patchscope put together what the model fails to? A query has two hops, “The capital of [the "
            f"country that is home to the Eiffel Tower]”: {len(queries.items)} queries of {len(set(queries.types))} "
            f"types over {len(set(queries.subjects))} bridges (France), both hops of each known to the model from "
            "text. Two methods write the state at the end of the first hop, π1, into the second, π2: over the "
            "placeholder of “The capital of x”; or within the query itself, late states written early at the token "
            "before π1, with π2 masked where it is read and π1 masked where it is written. A query counts as answered "
            "where the answer, or an alias of it, stands as whole words in the next "
            f"{design.scale.max_new_tokens} tokens. One (ℓ, ℓ*) is chosen on the queries of the other {N_FOLDS - 1} of "
            f"{N_FOLDS} folds of bridges."
        ),
        found=[*_summary(by), "", _texts(by), "", *_regions(regions), "", _types(types)],
        certainty=(
            "Intervals are 95 %, bootstrapped over bridges: queries that pass through the same country or company are "
            "one subject, since the same knowledge answers them. p of paired comparisons are of sign flips of whole "
            "bridges, with Holm's correction: over the controls of a method, over all gains, over what thoughts bring, "
            "and over both methods where the paper's score, or what is answered of the queries that fail as text, "
            "stands beside shuffled. "
            f"“Shuffled” is the mean over {DRAWS} other queries of the same type, whatever their answers: where many "
            "share an answer, it hits too. Where a query ends with π1, back-patching does not read free of it: the "
            "last token, from where the text goes on, is masked for what follows and still reads itself."
        ),
        left_out=left_out,
    )


def _summary(by: By) -> Iterator[str]:
    plain = by["text/plain", None]
    thoughts = "; ".join(
        f"{word} the query {by[f'text/{name}', None]}, {_signed(by[f'thought/{name}', 'plain-long'])} against that"
        for name, word in zip(THOUGHTS, ("before", "behind"), strict=True)
    )
    yield (
        f"- As text, {plain} of the queries are answered, though both hops are known; with as many new tokens as a "
        f"thought gets, {by['text/plain-long', None]}. With “{COT}” {thoughts}."
    )
    for name, label in METHODS.items():
        chosen, gain = by[f"chosen/{name}", None], by[f"gain/{name}", "plain"]
        yield (
            f"- **{label}**: {chosen} at one placement, {by[f'chosen/{name}', 'shuffled']} above shuffled. "
            f"{verdict(by, f'chosen/{name}')} Against the query as text: {_signed(gain)} (p {shown_p(gain.p)} after "
            f"Holm): {_gain(gain)}."
        )
        exists, left = by[f"exists/{name}", None], by[f"exists/{name}", "shuffled"]
        yield (
            f"  The paper's score, some (ℓ, ℓ*) of all, is {exists}; with other queries' states the same best-of has "
            f"{shown(exists.estimate - left.estimate)}, so that {left} remain."
        )
        if repaired := by.get((f"repaired/{name}", None)):
            yield (
                f"  Of the {repaired.n_items} queries that fail as text it answers {repaired}, "
                f"{by[f'repaired/{name}', 'shuffled']} above shuffled."
            )
        prior = by[f"prior/{name}", None]
        among = by.get((f"prior-among-answered/{name}", None))
        told = f"; of the answered ones {among}" if among else ""
        yield (
            f"  {prior} of its texts name the answer that most queries of their type get there, right or wrong{told}: "
            "so much a prior would say."
        )


def _gain(gain: Finding) -> str:
    if gain.low > 0 and (gain.p or 0) < 0.05:
        return "a gain"
    if gain.high < 0 and (gain.p or 0) < 0.05:
        return "**a loss**"
    return "**no gain shown**"


def _signed(finding: Finding) -> str:
    sign = "+" if finding.estimate > 0 else ""
    return f"{sign}{finding}"


def _texts(by: By) -> str:
    head = ("what the model is given", "answered", "two prompts minus this", "back-patching minus this")
    rows = [
        (label, *(str(by[key]) for key in ((f"text/{name}", None), *((f"gain/{method}", name) for method in METHODS))))
        for name, label in {**TEXTS, "plain-long": "the query as text, as many tokens as with thinking"}.items()
    ]
    return markdown_table(head, rows)


def _regions(regions: pd.DataFrame) -> Iterator[str]:
    yield (
        "By region of the depth (thirds): “the same” is the share of texts that name the answer which most queries of "
        "their type get there, whatever the query; among hits, a prior would have hit as well."
    )
    yield ""
    rows = [
        (
            r.method,
            r.read,
            r.written,
            shown(r.hits),
            f"{shown(r.estimate)} ({shown(r.low)} to {shown(r.high)})",
            f"{shown(r.some)} ({shown(r.some_shuffled)})",
            f"{shown(r.usual)} ({shown(r.usual_low)} to {shown(r.usual_high)})",
            shown(r.usual_among_hits),
        )
        for r in regions.itertuples()
    ]
    head = ("method", "read", "written", "hits", "− shuffled", "some (shuffled)", "the same", "among hits")
    yield markdown_table(head, rows)


def _types(types: pd.DataFrame) -> str:
    head = ("type", "queries (bridges)", "as text", "two prompts (− shuffled)", "back-patching (− shuffled)")
    rows = [
        (
            line["type"],
            f"{line['queries']} ({line['bridges']})",
            shown(line["text_plain"]),
            *(f"{shown(line[method])} ({shown(line[f'{method}_minus_shuffled'])})" for method in METHODS),
        )
        for line in types.to_dict("records")
    ]
    return markdown_table(head, rows)
