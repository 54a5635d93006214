"""The page and the figures of next-token."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from patchscopes.analysis.intervals import Interval
from patchscopes.results.entry import ranges
from patchscopes.studies.figures import Curve, Panel, draw
from patchscopes.studies.headline import failing, verdict
from patchscopes.studies.next_token.design import (
    AFFINE,
    CONTROLS,
    DRAWS,
    FIXED_PROMPT,
    IDENTITY,
    LABELS,
    LENSES,
    METHODS,
    TUNED,
)
from patchscopes.studies.next_token.findings import HALF
from patchscopes.studies.next_token.pairs import spread
from patchscopes.studies.next_token.readings import PRECISION, SURPRISALS, Readings
from patchscopes.studies.next_token.tables import SAYS_PROMPT, SAYS_TOKEN
from patchscopes.studies.report import Finding, framed, markdown_table, shown, shown_p

By = Mapping[tuple[str, str | None], Finding]
Tables = Mapping[str, pd.DataFrame]
NOTE = "Intervals: 95 %, bootstrapped over passages."
CERTAIN = 0.05
SHOWN_LAYERS = 11


# ------------------------------------------------------------------------------------------------ figures


def figures(tables: Tables) -> dict[str, Figure]:
    """Scores by ℓ, token identity ahead of lenses, controls, what else is said, prompts of more pairs."""
    curves, ahead = tables["curves"], tables["ahead"]
    precision = [_curve(curves, name, PRECISION, LABELS[name]) for name in METHODS]
    found = {
        "precision": draw([Panel("precision@1 by layer", precision, "precision@1")], note=NOTE),
        "ahead": draw([_ahead(ahead, prompt) for prompt in IDENTITY], note=f"{NOTE} Above 0: token identity is ahead."),
        "controls": draw(
            [_controls(tables["controls"], name) for name in (FIXED_PROMPT, AFFINE, TUNED)],
            note=f"{NOTE} Of one place of each passage.",
        ),
        "said": draw([_said(curves, name) for name in IDENTITY], note=NOTE),
    }
    hidden = curves[curves.source_layer > 0]  # at ℓ 0 the logit lens is a hundred nats away, and hides all others
    if surprisals := [_surprisals(hidden, score) for score in SURPRISALS if (hidden.score == score).any()]:
        found["surprisals"] = draw(surprisals, note=f"{NOTE} Without ℓ = 0.")
    if len(tables["pairs"]):
        found["pairs"] = draw([_pairs(tables["pairs"])], note=f"{NOTE} Mean over some ℓ.")
    return found


def _surprisals(curves: pd.DataFrame, score: str) -> Panel:
    lines = [_curve(curves, name, score, LABELS[name]) for name in METHODS]
    return Panel(f"surprisal {score.replace('-', ' ')}", lines, "nats")


def _curve(curves: pd.DataFrame, name: str, score: str, label: str) -> Curve:
    return Curve.of(label, curves[(curves.method == name) & (curves.score == score)])


def _ahead(ahead: pd.DataFrame, prompt: str) -> Panel:
    some = ahead[(ahead.prompt == prompt) & (ahead.score == PRECISION)]
    curves = [Curve.of(f"minus {LABELS[lens]}", some[some.lens == lens]) for lens in LENSES]
    return Panel(LABELS[prompt], curves, "difference in precision@1", zero=0.0)


def _controls(table: pd.DataFrame, name: str) -> Panel:
    some = table[(table.method == name) & (table.score == PRECISION)]
    return Panel(LABELS[name], [Curve.of(c, some[some.control == c]) for c in some.control.unique()], "precision@1")


def _said(curves: pd.DataFrame, name: str) -> Panel:
    labels = {
        PRECISION: "the next token",
        SAYS_TOKEN: "the token that is read",
        SAYS_PROMPT: "what the prompt says by itself",
    }
    return Panel(f"{LABELS[name]}: says", [_curve(curves, name, s, label) for s, label in labels.items()], "share")


def _pairs(table: pd.DataFrame) -> Panel:
    curves = []
    for draw_, some in table.groupby("draw"):
        intervals = [Interval(r.estimate, r.low, r.high, r.n_items, r.n_subjects) for r in some.itertuples()]
        curves.append(Curve(f"words {int(draw_) + 1}", list(some.pairs), intervals))
    mean = table.groupby("pairs").shuffled.mean()
    flat = [Interval(float(v), float("nan"), float("nan"), 0, 0) for v in mean]
    curves.append(Curve("shuffled, mean of all", [int(n) for n in mean.index], flat))
    return Panel("token identity with random words", curves, "precision@1", x_label="pairs in the prompt")


# ------------------------------------------------------------------------------------------------ the page


def page(readings: Readings, findings: Sequence[Finding], tables: Tables, left_out: Sequence[str]) -> str:
    """What was asked and found, how sure it is, what was left out and why."""
    by = {(finding.name, finding.control): finding for finding in findings}
    paired = _pairs_found(by, tables["pairs"]) if len(tables["pairs"]) else []
    return framed(
        title=f"Next token in {readings.design.setup.model.id}",
        opening=_opening(readings),
        found=[
            *_summary(by),
            "",
            _methods(by),
            "",
            f"Means over ℓ ≥ 1. First quarter: of the depth. Half from: the ℓ from which on precision@1 is at least "
            f"{HALF}; at the last ℓ it is 1 by all methods. Surprisals in nats: the lower the better.",
            "",
            "Precision@1 by layer:",
            "",
            _by_layer(tables["curves"]),
            "",
            "## Token identity beside each lens",
            "",
            _lenses(by),
            "",
            "Ahead: token identity minus the lens in precision@1, mean over ℓ ≥ 1; for surprisals the nats by which it "
            "is less surprised.",
            "",
            _where(by, tables["ahead"]),
            "",
            f"Ahead, behind: ℓ with p < {CERTAIN} after Holm over the ℓ. Chosen ℓ: where the other folds of passages "
            "have it most ahead, and most behind.",
            "",
            "## Beside the controls",
            "",
            _controlled(by),
            "",
            "Precision@1 minus that of each control, at the ℓ and places that have them. Stands: above 0 beside each.",
            "",
            "## Prompts, and what else is said",
            "",
            *paired,
            *_baselines(by, tables["curves"]),
        ],
        certainty=_certainty(readings),
        left_out=left_out,
    )


def _opening(readings: Readings) -> str:
    n_passages = len(set(readings.subjects(readings.items)))
    return (
        f"What will the model say next, read from one hidden state? {len(readings.items):,} places in {n_passages} "
        "passages of prose. The state of a token after ℓ blocks is written over the last token of an inspection prompt "
        "(“cat -> cat …”: *token identity*, after ℓ\\* = ℓ blocks, of which the model runs the others), or goes "
        "straight to the model's head (after all blocks: as it is, the *logit lens*; through a map, the *affine map* "
        "and the *tuned lens*). Precision@1: how often the likeliest next token is the one of the passage's own run. "
        "Surprisal under source: −ln p, in the passage's own run, of the token that the method says; under patched: "
        "−ln p, by the method, of the token that the passage's own run says."
    )


def _certainty(readings: Readings) -> str:
    design = readings.design
    quick = " With --quick that is little text for a map." if design.setup.quick else ""
    return (
        "Intervals are 95 %, bootstrapped over passages: places of one passage are resampled together. p of paired "
        "comparisons are of sign flips of whole passages, with Holm's correction over the comparisons that stand "
        f"together. Shuffled is the mean over {DRAWS} other passages' states, random and random-state over {DRAWS} "
        "draws; for lenses they go through the same map, so that zero is its bias alone. Passages of one section share "
        "their subject: the interval over sections is what is left if only sections count. The maps were fitted on "
        f"{len(design.dealt.fit)} passages of other sections of the same text, which is an advantage that token "
        f"identity has not; on other text they would do worse.{quick} The words of the two prompts are two draws of "
        "many: how far others lie apart stands with the prompts of 1 to 10 pairs. All estimates with their intervals "
        "and p are in tables/findings.csv."
    )


def _summary(by: By) -> list[str]:
    lines = []
    for prompt in IDENTITY:
        against = "; ".join(f"minus the {LABELS[lens]} {by[f'{PRECISION}-ahead/{prompt}', lens]}" for lens in LENSES)
        name = f"controlled/{prompt}"
        standing = f" {verdict(by, name, CONTROLS)}" if (name, None) in by else ""
        lines.append(
            f"- {LABELS[prompt].capitalize()}: precision@1 {by[f'{PRECISION}/{prompt}', None]}, a mean over the depth; "
            f"{against}.{standing}"
        )
    return lines


def _methods(by: By) -> str:
    rows = []
    for name in METHODS:
        surprisals = [str(by.get((f"{score}/{name}", None), "–")) for score in SURPRISALS]
        scores = [str(by[f"{score}/{name}", None]) for score in (PRECISION, "early")]
        rows.append([LABELS[name], *scores, _half(by[f"half/{name}", None]), *surprisals])
    return markdown_table(
        ("method", "precision@1", "first quarter", "half from ℓ", "under source", "under patched"), rows
    )


def _controlled(by: By) -> str:
    rows = []
    for name in METHODS:
        found = f"controlled/{name}"
        if (found, None) in by:
            beside = [str(by[found, control]) for control in (None, *CONTROLS)]
            rows.append([LABELS[name], *beside, "**no**" if failing(by, found, CONTROLS) else "yes"])
    return markdown_table(("method", "precision@1", *(f"minus {control}" for control in CONTROLS), "stands"), rows)


def _half(finding: Finding) -> str:
    bounds = (finding.estimate, finding.low, finding.high)
    estimate, low, high = (shown(value).removesuffix(".00") for value in bounds)
    return f"{estimate} ({low} to {high})"


def _lenses(by: By) -> str:
    head = (
        "prompt", "lens", "precision@1 ahead", "p", "over sections", "less surprised under source", "under patched"
    )  # fmt: skip
    rows = []
    for prompt in IDENTITY:
        for lens in LENSES:
            main = by[f"{PRECISION}-ahead/{prompt}", lens]
            cells = [
                LABELS[prompt], LABELS[lens], str(main), shown_p(main.p).removeprefix("= "),
                str(by[f"{PRECISION}-ahead-by-section/{prompt}", lens]),
                *(str(by.get((f"{score}-ahead/{prompt}", lens), "–")) for score in SURPRISALS),
            ]  # fmt: skip
            rows.append(cells)
    return markdown_table(head, rows)


def _where(by: By, ahead: pd.DataFrame) -> str:
    head = ("prompt", "lens", "ahead at ℓ", "behind at ℓ", "at the chosen ℓ, most ahead", "most behind")
    rows = []
    for prompt in IDENTITY:
        for lens in LENSES:
            chosen = (by.get((f"{name}/{prompt}", lens)) for name in ("most-ahead", "most-behind"))
            said = ["–" if one is None else f"{one}, p {shown_p(one.p)}" for one in chosen]
            rows.append([LABELS[prompt], LABELS[lens], *_sides(ahead, prompt, lens), *said])
    return markdown_table(head, rows)


def _sides(ahead: pd.DataFrame, prompt: str, lens: str) -> tuple[str, str]:
    """The ℓ at which token identity is ahead of a lens, and behind it, beyond chance."""
    some = ahead[(ahead.prompt == prompt) & (ahead.lens == lens) & (ahead.score == PRECISION) & (ahead.p < CERTAIN)]
    above, below = (
        ranges(list(side.source_layer)) or "none" for side in (some[some.low > 0], some[some.high < 0])
    )  # fmt: skip
    return above, below


def _by_layer(curves: pd.DataFrame) -> str:
    """Precision by ℓ, of as many ℓ as a page holds."""
    some = curves[curves.score == PRECISION]
    layers = sorted(some.source_layer.unique())
    step = -(-len(layers) // SHOWN_LAYERS)
    table = some.pivot_table(index="source_layer", columns="method", values="estimate")
    rows = [[str(layer), *(shown(float(table.loc[layer, name])) for name in METHODS)] for layer in layers[::step]]
    return markdown_table(("ℓ", *(LABELS[name] for name in METHODS)), rows)


def _pairs_found(by: By, table: pd.DataFrame) -> list[str]:
    numbers = sorted({int(n) for n in table.pairs})
    values = ", ".join(f"{n}: {by[f'pairs/{n}', None]}" for n in numbers)
    lines = [f"- Precision@1 by the number of pairs, random words, a mean over some ℓ: {values}."]
    if ("pairs-added", "fewer") in by:
        added, doubled = by["pairs-added", "fewer"], by["pairs-doubled", "fewer"]
        lines.append(
            f"- {numbers[-1]} pairs instead of {numbers[0]} add {added} (p {shown_p(added.p)}); each doubling adds "
            f"{doubled} (p {shown_p(doubled.p)}). Prompts of the same number of pairs, with other words, lie "
            f"{shown(spread(table))} apart, the highest minus the lowest."
        )
    return lines


def _baselines(by: By, curves: pd.DataFrame) -> list[str]:
    majority = by.get(("majority", None))
    always = f"Always the most frequent next token would be right in {majority}; " if majority else ""
    first = curves[(curves.method == FIXED_PROMPT) & (curves.source_layer > 0)]
    early = first[first.source_layer == first.source_layer.min()].set_index("score").estimate
    return [
        f"- {always}the token itself once more in {by['repeated', None]}.",
        f"- At the lowest ℓ ≥ 1, token identity says the token that it reads in {shown(float(early[SAYS_TOKEN]))} of "
        f"the places, and what the prompt says by itself in {shown(float(early[SAYS_PROMPT]))}.",
    ]
