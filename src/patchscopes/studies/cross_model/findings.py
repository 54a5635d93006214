"""Outcomes → findings with intervals over passages and subjects."""

from collections.abc import Mapping, Sequence

from patchscopes.analysis.intervals import mean_interval
from patchscopes.mappings import LINEAR
from patchscopes.studies.cross_model.facts import FREQUENT, Facts
from patchscopes.studies.cross_model.next_tokens import WHERE, NextTokens, Where
from patchscopes.studies.cross_model.placed import HeldOut, Placed
from patchscopes.studies.headline import HIT, beside, holm_over, minus
from patchscopes.studies.report import Finding

By = Mapping[tuple[str, str | None], Finding]
NEXT, AKIN, FACTS = "next-token", "next-token-akin", "facts"
AS_TARGET = "the target's own reading"
WHERE_IN_WORDS: Mapping[Where, str] = {
    "inside": "a (kind, ℓ, ℓ*) chosen on other passages, ℓ* below the target's last layer",
    "head": "a (kind, ℓ) chosen on other passages, at the target's last layer, which its final norm and head read",
}
AGREEMENT = {NEXT: "the target's next token is the source's own", AKIN: "one of the two tokens begins as the other"}
KNOWN = {
    "both": "facts that both models know from text",
    "target": "facts that the target knows from text and the source does not",
}


def all_findings(tokens: NextTokens, facts: Facts | None) -> list[Finding]:
    """Of next tokens, then of facts."""
    found = [*_next_tokens(tokens), *(_facts(facts) if facts is not None else [])]
    return holm_over(found, lambda f: f.name in (f"{NEXT}/best", f"{FACTS}/best") and f.control is not None)


def _next_tokens(tokens: NextTokens) -> list[Finding]:
    seed, subjects = tokens.design.setup.seed, tokens.subjects
    found: list[Finding] = []
    for where in WHERE:
        for name, measure in ((NEXT, "same"), (AKIN, "akin")):
            held = tokens.held_out(where, measure)
            about = AGREEMENT[name], WHERE_IN_WORDS[where]
            found += beside(f"{name}/{where}", held.own, held.beside, subjects, seed=seed, about=about)
    for name, measure in ((NEXT, "same"), (AKIN, "akin")):
        reads = mean_interval(tokens.reads(measure), subjects, seed=seed, bounds=HIT)
        found.append(Finding.of(f"{name}/target-reads", reads, f"{AGREEMENT[name]}, where it reads the text itself"))
    found += _differing(tokens)
    for kind in LINEAR:
        held = HeldOut.of(tokens.same, tokens.same.chosen(tokens.among("inside", [kind])))
        about = AGREEMENT[NEXT], f"an (ℓ, ℓ*) of {kind} maps chosen on other passages, ℓ* below the last layer"
        found += beside(f"{NEXT}/{kind}", held.own, held.beside, subjects, seed=seed, about=about)
    return found + _best(NEXT, tokens.same, tokens.among("inside"), seed)


def _differing(tokens: NextTokens) -> list[Finding]:
    """Where both models say different things of the text: whose next token does the mapped state bring?"""
    items, seed = tokens.differing, tokens.design.setup.seed
    if not items:
        return []
    subjects = [tokens.subjects[k] for k in items]
    found = []
    for where in WHERE:
        some = tokens.held_out(where).only(items)
        controls = {"shuffled": some.beside["shuffled"], AS_TARGET: tokens.as_target(where)[items]}
        about = f"{AGREEMENT[NEXT]}, of passages of which the target itself says another", WHERE_IN_WORDS[where]
        found += beside(f"{NEXT}/differing-{where}", some.own, controls, subjects, seed=seed, about=about)
    return found


def _facts(facts: Facts) -> list[Finding]:
    seed, held = facts.design.setup.seed, facts.held_out
    about = "the target's text names the object", "a (kind, ℓ, ℓ*) chosen on other subjects"
    found = beside(f"{FACTS}/all", held.own, held.beside, facts.subjects, seed=seed, about=about)
    for which, label in KNOWN.items():
        items = facts.group(which)
        if items:
            family = "both groups of facts and both controls"
            found += _some(f"{FACTS}/{which}", held, facts, items, about=f"{about[0]}: {label}", family=family)
    groups = [f"{FACTS}/{which}" for which in KNOWN]
    found = holm_over(found, lambda f: f.name in groups and f.control is not None)
    names = [f"{FACTS}/{ran.case.name}" for ran in facts.ran]
    for name, at in zip(names, facts.slices, strict=True):
        found += _some(name, held, facts, range(at.start, at.stop), about=about[0], family="the relations")
    for control in ("shuffled", FREQUENT):
        found = holm_over(found, lambda f, control=control: f.name in names and f.control == control)  # type: ignore[misc]
    for kind in LINEAR:
        of_kind = HeldOut.of(facts.placed, facts.placed.chosen(facts.among([kind])))
        where = about[0], f"an (ℓ, ℓ*) of {kind} maps chosen on other subjects"
        found += beside(f"{FACTS}/{kind}", of_kind.own, of_kind.beside, facts.subjects, seed=seed, about=where)
    return found + _best(FACTS, facts.placed, facts.among(), seed)


def _some(name: str, held: HeldOut, facts: Facts, items: Sequence[int], *, about: str, family: str) -> list[Finding]:
    """The held-out hits of some items, beside other subjects' states and always the same answer.

    `family` says over what their p will be corrected.
    """
    seed, some, subjects = facts.design.setup.seed, held.only(items), [facts.subjects[k] for k in items]
    rate = mean_interval(some.own, subjects, seed=seed, bounds=HIT)
    found = [Finding.of(name, rate, f"{about}, at a (kind, ℓ, ℓ*) chosen on other subjects")]
    for control in ("shuffled", FREQUENT):
        said = f"{about}, minus that with {control}; p: Holm over {family}"
        found.append(minus((name, control), some.own, some.beside[control], subjects, seed=seed, about=said))
    return found


def _best(name: str, placed: Placed, among: Sequence[int], seed: int) -> list[Finding]:
    """A hit at some placement, beside the same best-of with others' states (rule 17)."""
    own, shuffled = placed.best(among)
    about = f"a hit at some (kind, ℓ ≥ 1, ℓ*) of {len(among)}: the best of many"
    left = f"{about}, minus the same best with shuffled states; p: Holm over all best-ofs"
    return [
        Finding.of(f"{name}/best", mean_interval(own, placed.subjects, seed=seed, bounds=HIT), about),
        minus((f"{name}/best", "shuffled"), own, shuffled, placed.subjects, seed=seed, about=left),
    ]
