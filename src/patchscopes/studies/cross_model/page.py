"""The report of cross-model: figures and the page in words."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from patchscopes.analysis.intervals import Interval
from patchscopes.mappings import LINEAR
from patchscopes.prompts import find_prompt
from patchscopes.studies.cross_model.design import DRAWS, IDENTITY, N_FOLDS, Design
from patchscopes.studies.cross_model.facts import FREQUENT
from patchscopes.studies.cross_model.findings import AKIN, AS_TARGET, FACTS, NEXT, By
from patchscopes.studies.cross_model.next_tokens import AS_TEXT, READS
from patchscopes.studies.cross_model.placed import OWN_STATE, TOKEN
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import verdict
from patchscopes.studies.report import Finding, framed, markdown_table, shown, shown_p
from patchscopes.studies.walk import sentence

NOTE = "Bars: 95 % intervals over {}."
LOWEST = -1.0  # of an R² in a figure; those below it are drawn there
HEADLINES = {
    f"{NEXT}/inside": "next token, below the last layer",
    f"{NEXT}/head": "next token, at the last layer",
    f"{FACTS}/all": "facts",
}
Tables = Mapping[str, pd.DataFrame]


def figures(findings: Sequence[Finding], tables: Tables) -> dict[str, Figure]:
    """R² by layer pair; next tokens and facts by placement, beside their controls."""
    found = {
        "maps": draw(
            [
                Panel(f"{kind} maps", _r2(tables["maps"], kind), "R² of the median dimension", zero=0.0)
                for kind in LINEAR
            ],
            note=f"On text that was held out; values below {shown(LOWEST)} are drawn there.",
        ),
        "next-tokens": _grid(tables["next-tokens"], "same next token, minus shuffled", "passages"),
        "next-token-controls": _controls(findings, f"{NEXT}/inside", "passages"),
        "next-token-head-controls": _controls(findings, f"{NEXT}/head", "passages"),
    }
    if "facts" in tables:
        found["facts"] = _grid(tables["facts"], "hits, minus shuffled", "subjects")
        found["fact-controls"] = _controls(findings, f"{FACTS}/all", "subjects")
        names = [f"{FACTS}/{name}" for name in tables["relations"].relation]
        found["relations"] = bars(
            [Bar(f.name.removeprefix(f"{FACTS}/"), f.interval) for f in findings
             if f.name in names and f.control == "shuffled"],
            title="held-out hits minus shuffled states", x_label="share of facts", note=NOTE.format("subjects"),
        )  # fmt: skip
    return found


def identity_prompt() -> str:
    """The prompt that next tokens are read with, its placeholder as it stands there."""
    prompt = find_prompt(IDENTITY)
    return sentence(prompt.text.replace("{}", prompt.placeholder or ""))


def _r2(table: pd.DataFrame, kind: str) -> list[Curve]:
    """R² by ℓ, a curve for each ℓ*; without intervals."""
    curves = []
    for star, lines in table[table.kind == kind].groupby("target_layer"):
        values = [Interval(max(value, LOWEST), float("nan"), float("nan"), 0, 0) for value in lines.r2_median]
        curves.append(Curve(f"ℓ* = {star}", list(lines.source_layer), values))
    return curves


def _grid(table: pd.DataFrame, label: str, whose: str) -> Figure:
    """A score minus shuffled by ℓ, a curve for each ℓ*, a panel for each kind of map."""
    panels = []
    for kind, of_kind in table.groupby("kind", sort=False):
        curves = []
        for star, lines in of_kind.groupby("target_layer"):
            found = [Interval(r.adjusted, r.low, r.high, r.n_items, r.n_subjects) for r in lines.itertuples()]
            curves.append(Curve(f"ℓ* = {star}", list(lines.source_layer), found))
        panels.append(Panel(f"{kind} maps", curves, label, zero=0.0))
    return draw(panels, note=NOTE.format(whose))


def _controls(findings: Sequence[Finding], name: str, whose: str) -> Figure:
    found = [Bar(f"minus {f.control}" if f.control else "held out", f.interval) for f in findings if f.name == name]
    return bars(found, title=HEADLINES[name], x_label="share", note=NOTE.format(whose))


def page(design: Design, findings: Sequence[Finding], tables: Tables, left_out: Sequence[str]) -> str:
    """What was found, how sure it is, what was left out and why."""
    by: By = {(finding.name, finding.control): finding for finding in findings}
    source, target = design.source.id, design.target.id
    maps, has_facts = tables["maps"], "facts" in tables
    return framed(
        title=f"Cross-model: states of {source} in {target}",
        opening=(
            f"Is a state of {source} of use to {target}, a model with other weights, width and tokens? A linear map "
            f"takes states at ℓ of {source} to states at ℓ* of {target}. It was fitted on prose and on sentences "
            "about names, at positions where both tokenisations have one token of the same characters. What it makes "
            f"of a state of other prose, or of another name, is written into a prompt of {target}: for next tokens "
            f"over the last token of “{identity_prompt()}”, for facts over the “x” of a sentence such as “The capital "
            "of x”. Wherever one "
            f"placement (kind of map, ℓ, ℓ*) is named, it was chosen on the items of the other {N_FOLDS - 1} of "
            f"{N_FOLDS} folds. The same was done with other items' states (shuffled), with their mean, with unrelated "
            "states, with noise, and with a vector of zeros, of which a map makes its bias: what the bias alone brings "
            "is no knowledge of any state."
        ),
        found=[
            *_short(by, design),
            "",
            *_maps(maps, design),
            *_next(by, tables, design),
            *(_facts(by, tables, design) if has_facts else _no_facts(design)),
            "",
            *_beside(by, HEADLINES if has_facts else dict(list(HEADLINES.items())[:2])),
            *(_relations(by, tables["relations"]) if has_facts else []),
            *_kinds(by, {NEXT: "next tokens", FACTS: "facts"} if has_facts else {NEXT: "next tokens"}),
        ],
        certainty=(
            "Intervals are 95 %, bootstrapped over passages (next tokens) and subjects (facts; a country of three "
            "relations is one). Passages of a section are counted as if they were independent; no section and no "
            "name is both in the text that was fitted on and among them. p are of sign flips of whole passages or "
            "subjects, with Holm's correction: over the controls of a score; for each control over the relations; over "
            "the facts that both models know and those that the target alone knows, with both controls; and over the "
            "best-ofs of next tokens and of facts. “Shuffled” is the mean over "
            f"{DRAWS} other passages, or other subjects of the relation, whatever their answers. “The target's own "
            f"state” is the one that {target} itself has of the same token of the same text, read and written at the "
            "same ℓ*: what a perfect map could bring there. “The token alone” is the state at ℓ = 0, which is the same "
            "whatever stands before the token, through a map as well, kind and ℓ* chosen on other folds. “The token as "
            "text” is the token that is read, in the placeholder's stead: what needs no more of the text than its last "
            "token. “The text itself” is what the target says next when it reads the text. "
            f"{target} gives all of these facts from text, so that a state has only to tell which subject it is of: a "
            f"hit does not show that {source} knows the object too. R² have no interval: they are of one held-out part "
            "of the prose."
        ),
        left_out=left_out,
    )


def _short(by: By, design: Design) -> list[str]:
    """All of it in a few sentences, which the figures decide."""
    source, target = design.source.id, design.target.id
    inside, head = (f"{NEXT}/{where}" for where in ("inside", "head"))
    lines = [
        f"In short: written below the last layer, a mapped state of {source} tells {target} of the next token "
        f"{_more(by, inside)}; {_than_text(by[inside, READS])}. At the last layer, where it is only read out, it tells "
        f"{_more(by, head)}; {_than_text(by[head, READS])}."
    ]
    if (name := f"{FACTS}/all") in {found for found, _ in by}:
        lines.append(f"Of a subject's facts it tells {_more(by, name)}; {_than_own(by[name, OWN_STATE])}.")
    return lines


def _more(by: By, name: str) -> str:
    """What a score is beside all that knows nothing of the item: the controls, the bias, the most frequent answer."""
    controls = [control for of, control in by if of == name and control not in (None, READS, OWN_STATE)]
    failing = [str(control) for control in controls if not by[name, control].stands]
    if not failing:
        return "more than any control does"
    return f"no more, as far as can be told, than {', '.join(f'“{control}”' for control in failing)}"


def _verdict(by: By, name: str) -> str:
    """Rule 17's, and whether the bias alone would do."""
    said = verdict(by, name)
    return said if by[name, "zero"].stands else f"{said} **Beside the bias alone it does not stand**."


def _than_text(left: Finding) -> str:
    if left.high < 0:
        return "reading the text itself tells more"
    if left.low > 0:
        return "that is more than reading the text itself tells"
    return "whether reading the text itself tells more cannot be told from so few passages"


def _than_token(left: Finding) -> str:
    if left.low > 0:
        return "So it is more than a dictionary, which puts one vocabulary's word for the other's, would do."
    return (
        "A dictionary from the tokens of the one model to those of the other would do as well, as far as can be told: "
        "these hits do not show that anything but the last token crosses."
    )


def _than_own(left: Finding) -> str:
    if left.high < 0:
        return "the target's own state of the subject, at the same layer, tells more"
    return "whether the target's own state at the same layer tells more cannot be told from so few subjects"


def _maps(maps: pd.DataFrame, design: Design) -> list[str]:
    n, n_subjects = int(maps.n_held_out.iloc[0]), int(maps.n_subjects.iloc[0])
    prose, subjects = [], []
    for kind in LINEAR:
        of_kind = maps[(maps.kind == kind) & (maps.source_layer > 0)]
        best = of_kind.loc[of_kind.r2_median.idxmax()]
        place = f"{kind} {int(best.source_layer)} → {int(best.target_layer)}"
        prose.append(f"{shown(best.r2_median)} ({place}; {shown(best.r2)} over all dimensions together)")
        if n_subjects:
            best = of_kind.loc[of_kind.r2_median_subjects.idxmax()]
            place = f"{kind} {int(best.source_layer)} → {int(best.target_layer)}"
            subjects.append(f"{shown(best.r2_median_subjects)} ({place})")
    where = "" if design.setup.out is None else " They are kept in mappings/, for `patchscopes inspect --mapping`."
    lines = [
        f"- Maps: at {n:,} positions of held-out prose, the best R² of the median dimension, at ℓ ≥ 1, is "
        f"{', '.join(prose)}. A few dimensions can hold most of the variance, so that R² over all of them says little "
        f"of the others. All {len(maps)} maps are in the table “maps”.{where}"
    ]
    if n_subjects:
        lines.append(
            f"- The same for the last tokens of the {n_subjects} sentences that facts are asked with, about names that "
            f"no map has seen: {', '.join(subjects)}. These sentences differ in the name alone; below 0, a map comes "
            f"less near to the state that {design.target.id} has of a name than the mean of these states would. What "
            "is lost there is lost for the facts below."
        )
    return lines


def _next(by: By, tables: Tables, design: Design) -> list[str]:
    source, target = design.source.id, design.target.id
    table, n_sections = tables["next-tokens"], tables["passages"].section.nunique()
    lines = []
    for where, label in (
        ("inside", "Next tokens, written below the last layer of"),
        ("head", "Next tokens, written at the last layer, behind which only the norm and the head come, of"),
    ):
        name = f"{NEXT}/{where}"
        passages = f"{by[name, None].n_items} passages (of {n_sections} sections)"
        lines.append(
            f"- {label} {target}: at a placement chosen on other passages it says the next token of {source} in "
            f"a share of {by[name, None]} of the {passages}; {by[name, 'shuffled']} more than with other "
            f"passages' states, {by[name, 'zero']} more than with the bias alone, {by[name, AS_TEXT]} more than with "
            f"the token itself as text, {by[name, TOKEN]} more than with the token alone through a map. "
            f"{_verdict(by, name)} Chosen most often: {_placements(table, f'n_chosen_{where}')}."
        )
    return [
        *lines,
        f"- Reading the same text itself, {target} says the next token of {source} in a share of "
        f"{by[f'{NEXT}/target-reads', None]}. The mapped state minus that: {by[f'{NEXT}/inside', READS]} below the "
        f"last layer, {by[f'{NEXT}/head', READS]} at it. Where these "
        "are below 0, whoever has the text gets more from it than from the state.",
        *_differing(by, design),
        f"- By the looser measure, one token beginning as the other: {by[f'{AKIN}/inside', None]}, "
        f"{by[f'{AKIN}/inside', 'shuffled']} more than shuffled (the text itself: {by[f'{AKIN}/target-reads', None]}).",
        _best(by, NEXT, "passage"),
    ]


def _differing(by: By, design: Design) -> list[str]:
    """Of the passages of which both models say different things: whose next token the state brings."""
    source, target = design.source.id, design.target.id
    names = {label: f"{NEXT}/differing-{where}" for where, label in (("inside", "below"), ("head", "at"))}
    if (names["below"], None) not in by:
        return []
    n = by[names["below"], None].n_items
    parts = [
        f"written {label} the last layer, the state of {source} brings its own next token in a share of "
        f"{by[name, None]}, {by[name, 'shuffled']} more than other passages' states do, and {by[name, AS_TARGET]} more "
        f"than it brings that of {target}"
        for label, name in names.items()
    ]
    return [
        f"- Of the {n} passages of which {target}, reading them itself, says another next token: {'; '.join(parts)}."
    ]


def _facts(by: By, tables: Tables, design: Design) -> list[str]:
    source, target = design.source.id, design.target.id
    name, n_relations = f"{FACTS}/all", len(tables["relations"])
    every = by[name, None]
    lines = [
        f"- Facts that {target} gives from text ({every.n_items} facts, {n_relations} relations): with the state that "
        f"{source} has of the subject, {target} names the object of a share of {every}; "
        f"{by[name, 'shuffled']} more than with other subjects' states, {by[name, 'random-state']} more than with "
        f"unrelated ones, {by[name, 'zero']} more than with the bias alone, {by[name, FREQUENT]} more than by always "
        "giving the most frequent answer. "
        f"{_verdict(by, name)} Chosen most often: {_placements(tables['facts'])}.",
        f"- The mapped state minus the state that {target} itself has of the subject, at the same ℓ*: "
        f"{by[name, OWN_STATE]}. Minus what the token alone brings (ℓ = 0, the rest chosen in the same way): "
        f"{by[name, TOKEN]}. {_than_token(by[name, TOKEN])}",
    ]
    for which, whom in (("both", "both models give"), ("target", f"{target} gives and {source} does not give")):
        if (some := by.get((f"{FACTS}/{which}", None))) is not None:
            lines.append(
                f"- Of the {some.n_items} facts that {whom} from text, a share of {some} is named, "
                f"{by[f'{FACTS}/{which}', 'shuffled']} more than shuffled."
            )
    lines.append(_best(by, FACTS, "fact"))
    return lines


def _best(by: By, name: str, item: str) -> str:
    best, left = by[f"{name}/best", None], by[f"{name}/best", "shuffled"]
    return (
        f"- At the best of all placements, chosen on the {item} itself: {best}; the same best-of with shuffled states "
        f"has {shown(best.estimate - left.estimate)}, so that {left} remain."
    )


def _no_facts(design: Design) -> list[str]:
    return [f"- Facts: none are reported, since {design.target.id} gives too few of them from text."]


def _placements(table: pd.DataFrame, column: str = "n_chosen", n: int = 3) -> str:
    """The placements that were chosen most often."""
    chosen = table[table[column] > 0].nlargest(n, column)
    lines = zip(chosen.kind, chosen.source_layer, chosen.target_layer, chosen[column], strict=True)
    return ", ".join(f"{kind} {source} → {target} ({count})" for kind, source, target, count in lines)


def _beside(by: By, names: Mapping[str, str]) -> list[str]:
    """The headline scores beside every control, a column each."""
    controls = dict.fromkeys(control for name, control in by if name in names and control is not None)
    rows = [("held out", *(str(by[name, None]) for name in names))]
    rows += [(f"minus {control}", *(str(by.get((name, control), "")) for name in names)) for control in controls]
    return [markdown_table(("", *names.values()), rows), ""]


def _relations(by: By, relations: pd.DataFrame) -> list[str]:
    head = ("relation", "facts (both know)", "named", "minus shuffled", "p", "minus the most frequent answer")
    rows = []
    for line in relations.itertuples():
        name = f"{FACTS}/{line.relation}"
        cells = (
            str(line.relation), f"{line.facts} ({line.source_knows})", shown(by[name, None].estimate),
            str(by[name, "shuffled"]), shown_p(by[name, "shuffled"].p).removeprefix("= "), str(by[name, FREQUENT]),
        )  # fmt: skip
        rows.append(cells)
    return [markdown_table(head, rows), ""]


def _kinds(by: By, columns: Mapping[str, str]) -> list[str]:
    """Each kind of map by itself, at the (ℓ, ℓ*) chosen for it."""
    head = ("maps", *(name for label in columns.values() for name in (label, "minus shuffled", "minus the bias")))
    rows = [
        (kind, *(str(by[f"{what}/{kind}", control]) for what in columns for control in (None, "shuffled", "zero")))
        for kind in LINEAR
    ]
    return [markdown_table(head, rows), ""]
