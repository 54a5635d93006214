"""The report of attribute-extraction: figures and the page in words."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from patchscopes.studies.attribute_extraction.cities import compared
from patchscopes.studies.attribute_extraction.design import DRAWS, N_FOLDS, Design
from patchscopes.studies.attribute_extraction.findings import ALL, stands
from patchscopes.studies.attribute_extraction.outcome import Outcome
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import NEEDED
from patchscopes.studies.report import Finding, framed, markdown_table, shown, shown_p
from patchscopes.studies.walk import sentence

NOTE = "Bars: 95 % intervals over subjects."
By = Mapping[tuple[str, str | None], Finding]


def figures(
    outcomes: Mapping[str, Outcome], findings: Sequence[Finding], layers: pd.DataFrame, grid: pd.DataFrame
) -> dict[str, Figure]:
    """Relations beside shuffled states and beside the probe; the controls; hits by placement; scores by ℓ."""
    by = {(finding.name, finding.control): finding for finding in findings}
    found = {
        "relations": bars(
            [Bar(name, by[f"chosen/{name}", "shuffled"].interval) for name in outcomes],
            title="held-out hits minus shuffled states", x_label="share of subjects", note=NOTE,
        ),
        "probe": bars(
            [Bar(name, by[f"patchscope-minus-probe/{name}", "probe"].interval) for name in outcomes],
            title="held-out hits minus the probe's", x_label="share of subjects", note=NOTE,
        ),
        "controls": bars(
            [
                Bar(f"minus {f.control}" if f.control else "held-out hits", f.interval)
                for f in findings if f.name == f"chosen/{ALL}"
            ],
            title=ALL, x_label="share of facts", note=NOTE,
        ),
        "exists": bars(
            [
                bar
                for name in (ALL, *outcomes)
                for bar in (
                    Bar(f"{name}: some ℓ*", by[f"exists/{name}", None].interval),
                    Bar("  minus shuffled", by[f"exists/{name}", "shuffled"].interval),
                )
            ],
            title="the paper's score, and what of it is left", x_label="share of subjects, mean over ℓ", note=NOTE,
        ),
    }  # fmt: skip
    everywhere = grid[grid.relation == ALL]
    curves = [Curve.of(f"ℓ* = {star}", lines) for star, lines in everywhere.groupby("target_layer")]
    found["placements"] = draw([Panel(ALL, curves, "hits minus shuffled", zero=0.0)], note=NOTE)
    for number, names in enumerate(_groups(list(outcomes)), 1):
        panels = [
            Panel(label, [_curve(layers, name, score) for name in names], "", zero=0.0)
            for score, label in (
                ("exists-minus-shuffled", "some ℓ*, minus shuffled"),
                ("rank-reciprocal-minus-shuffled", "1 / rank, minus shuffled"),
            )
        ]
        found[f"layers-{number}"] = draw(panels, note=NOTE)
    return found


def _groups(names: Sequence[str], size: int = 6) -> list[Sequence[str]]:
    return [names[k : k + size] for k in range(0, len(names), size)]


def _curve(layers: pd.DataFrame, name: str, score: str) -> Curve:
    chosen = layers[(layers.relation == name) & (layers.score == score)]
    return Curve.of(name, chosen)


def page(
    design: Design,
    outcomes: Mapping[str, Outcome],
    findings: Sequence[Finding],
    tables: tuple[pd.DataFrame, pd.DataFrame | None],
    left_out: Sequence[str],
) -> str:
    """What was found, how sure it is, what was left out and why. `tables`: by placement, and the cities'."""
    grid, cities = tables
    by = {(finding.name, finding.control): finding for finding in findings}
    n_items = sum(len(outcome.grid.items) for outcome in outcomes.values())
    return framed(
        title=f"Attribute extraction in {design.setup.model.id}",
        opening=(
            f"Does the state of a subject hold an attribute, without a probe? {n_items} facts of {len(outcomes)} "
            "relations, each known to the model from text. The state of the subject's last token at ℓ is written over "
            "the placeholder of “The … of x” at ℓ*; a hit is the object, or an alias of it, as whole words in the text "
            f"that follows. Where one (ℓ, ℓ*) is named, it was chosen on the subjects of the other {N_FOLDS - 1} of "
            f"{N_FOLDS} folds."
        ),
        found=[
            *_summary(by, outcomes),
            _placements(grid),
            "",
            _relations(by, outcomes),
            "",
            "Held out: hits at the chosen placement. − shuffled: minus the mean of 5 other subjects' states there. "
            f"Stands: above 0 beside {', '.join(NEEDED)} each. Some ℓ*: the paper's score, mean over ℓ. Level at: "
            "labelled subjects from which on the probe is no worse; – where there is no hit to draw level with.",
            "",
            *(_cities(by, cities) if cities is not None else []),
        ],
        certainty=(
            "Intervals are 95 %, bootstrapped over subjects; a subject of several relations is one. p of paired "
            "comparisons are of sign flips of whole subjects, with Holm's correction: over the controls of a score, or "
            f"over the relations (the paper's score, the probe). “Shuffled” is the mean over {DRAWS} other subjects of "
            "the relation, whatever their answers: where many share an answer, it hits too. The probe is logistic "
            "regression on the same states, its C and ℓ chosen in the training folds; where its ceiling is 0, no class "
            "occurs twice and it cannot be right."
        ),
        left_out=left_out,
    )


def _summary(by: By, outcomes: Mapping[str, Outcome]) -> list[str]:
    chosen, exists = by[f"chosen/{ALL}", None], by[f"exists/{ALL}", None]
    standing = [name for name in outcomes if stands(by, name)]
    probe = [by[f"patchscope-minus-probe/{name}", "probe"] for name in outcomes]
    above = [f for f in probe if f.low > 0 and (f.p or 0) < 0.05]
    below = [f for f in probe if f.high < 0 and (f.p or 0) < 0.05]
    lines = [
        f"- At one placement, chosen without the subject, {chosen} of the facts are hit; "
        f"{by[f'chosen/{ALL}', 'shuffled']} more than with other subjects' states, "
        f"{by[f'chosen/{ALL}', 'random-state']} more than with unrelated ones, {by[f'chosen/{ALL}', 'majority']} more "
        "than by always giving the most frequent answer.",
        f"- {len(standing)} of {len(outcomes)} relations stand by themselves: {', '.join(standing) or 'none'}.",
        f"- The paper's score, a hit at some ℓ*, is {exists} on the average over ℓ; with shuffled states the same "
        f"best-of has {shown(exists.estimate - by[f'exists/{ALL}', 'shuffled'].estimate)}, so that "
        f"{by[f'exists/{ALL}', 'shuffled']} remain.",
        "- From the subject as text the model gives "
        f"{shown(chosen.estimate - by[f'chosen/{ALL}', 'phrase-only'].estimate)} (by selection: a fact is kept only "
        "then).",
        f"- Beside the probe: better in {len(above)} relations, worse in {len(below)}, not told apart in "
        f"{len(probe) - len(above) - len(below)} (p < 0.05 after Holm).",
    ]
    if ranked := by.get((f"rank-first/{ALL}", None)):
        lines.append(
            f"- Among the relation's objects, the right one is raised most in {ranked}; "
            f"{by[f'rank-first/{ALL}', 'shuffled']} more than with shuffled states. That is of the {ranked.n_items} "
            "facts whose object is among those that are ranked."
        )
    if in_contexts := by.get((f"contexts/{ALL}", "shuffled")):
        lines.append(f"- In other source sentences {in_contexts} above shuffled.")
    return lines


def _placements(grid: pd.DataFrame, n: int = 4) -> str:
    """Where facts were read and written, and what that can and cannot show."""
    chosen = grid[(grid.relation == ALL) & (grid.n_chosen > 0)].nlargest(n, "n_chosen")
    listed = ", ".join(f"{r.source_layer} → {r.target_layer} ({r.n_chosen} facts)" for r in chosen.itertuples())
    star = int(grid.target_layer.max())
    late = grid[(grid.relation == ALL) & (grid.target_layer == star) & (grid.source_layer > 0)]
    best = late.loc[late.estimate.idxmax()]
    return (
        f"- Chosen most often, ℓ → ℓ*: {listed}. Written early, a state need only say which subject it is: the model "
        "has the blocks above to look the object up, as it does for the subject as text. Written at the last ℓ* of the "
        f"grid, {star}, where little is left to look up with, the best ℓ ≥ 1 ({int(best.source_layer)}) has "
        f"{shown(best.estimate)} ({shown(best.low)} to {shown(best.high)}) above shuffled; the best of several, so no "
        "more than a bound."
    )


def _relations(by: By, outcomes: Mapping[str, Outcome]) -> str:
    head = (
        "relation", "facts, classes", "held out", "− shuffled", "stands", "some ℓ*", "− shuffled", "raised most",
        "probe (ceiling)", "− probe", "level at",
    )  # fmt: skip
    rows = []
    for name, outcome in outcomes.items():
        classes = len({outcome.case.facts[item].object for item in outcome.grid.items})
        first = by.get((f"rank-first/{name}", None))
        probe, ceiling = by[f"probe-correct/{name}", None], by[f"probe-possible/{name}", None]
        cells = (
            name,
            f"{len(outcome.grid.items)}, {classes}",
            shown(by[f"chosen/{name}", None].estimate),
            str(by[f"chosen/{name}", "shuffled"]),
            "yes" if stands(by, name) else "no",
            shown(by[f"exists/{name}", None].estimate),
            str(by[f"exists/{name}", "shuffled"]),
            shown(first.estimate) if first else "–",
            f"{shown(probe.estimate)} ({shown(ceiling.estimate)})",
            str(by[f"patchscope-minus-probe/{name}", "probe"]),
            shown(outcome.probe.level).removesuffix(".00"),
        )
        rows.append(cells)
    return markdown_table(head, rows)


def _cities(by: By, cities: pd.DataFrame) -> list[str]:
    apart = by.get(("cities-told-apart", "other relation"))
    if apart is None:
        return []
    differ = compared(cities)
    verdict = "told apart" if apart.low > 0 and (apart.p or 0) < 0.05 else "**not** told apart for sure"
    head = ("country", "prompt", "right", "the other", "says right", "says the other", "text")
    rows = [
        (
            line.country,
            line.relation.removeprefix("country "),
            line.expected,
            line.other,
            "yes" if line.right else "no",
            "yes" if line.says_other else "no",
            sentence(line.text),
        )
        for line in differ.sort_values(["country", "relation"]).itertuples()
    ]
    return [
        "## Capitals and largest cities",
        "",
        f"In {apart.n_subjects} countries the largest city is not the capital. The text names the city that was asked "
        f"for minus the other relation's city: {apart} (p {shown_p(apart.p)}): capital and largest city are {verdict}. "
        "All countries of both relations are in the table “cities”, held out; these are the ones where it shows:",
        "",
        markdown_table(head, rows),
        "",
    ]
