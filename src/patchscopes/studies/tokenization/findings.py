"""Scores of tokenization → findings with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import mean_interval
from patchscopes.analysis.resolution import Resolved, logrank, resolution_layers, survival
from patchscopes.cached import cached_property
from patchscopes.data import Entity, Exclusion
from patchscopes.studies.entities import DRAWS
from patchscopes.studies.headline import DIFFERENCE, beside
from patchscopes.studies.report import Finding
from patchscopes.studies.scored import ScoredEntities
from patchscopes.studies.scores import SCORES, Curves, curves_of, ever_resolved, places_of
from patchscopes.studies.texts import Table
from patchscopes.studies.tokenization.design import PROMPT, Design
from patchscopes.studies.tokenization.detokenised import Detokenised
from patchscopes.studies.tokenization.forms import FORMS, Form
from patchscopes.studies.tokenization.matched import Matched, matched_difference, slope

GROUPS = ("1", "2", "3+")
SHUFFLED, LAYER_0, CHANCE = "shuffled words", "the last piece's embedding (ℓ 0)", "chance"
FEWEST_IN_TIER = 10  # names, for a slope within one tier


@dataclass(frozen=True)
class FormScores:
    """A form beside the one that it is compared with, by entity: hits (item, layer), and the tokens of the name."""

    form: str
    entities: tuple[Entity, ...]
    made: tuple[Form, ...]
    hits: NDArray[np.bool_]
    beside: NDArray[np.bool_]
    more_tokens: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        """The subjects over which intervals are made."""
        return [entity.name for entity in self.entities]


@dataclass(frozen=True)
class Scored(ScoredEntities):
    """The results of all stages, with the names that have all of their own (`items` of the design's)."""

    design: Design
    words: Detokenised

    @property
    def names(self) -> list[Form]:
        """The names that are reported on, in the order of all arrays."""
        return [self.design.names[item] for item in self.items]

    @property
    def subjects(self) -> list[str]:
        """The entities over which intervals are made."""
        return [name.entity.name for name in self.names]

    @cached_property
    def table(self) -> Table:
        """The rows of names as they are."""
        return Table.of(self.results["names"], PROMPT, len(self.design.names))

    @cached_property
    def curves(self) -> Curves:
        """Keyword hits of names as they are, at every ℓ."""
        return _curves(self, "names", self.design.names, self.items, self.design.every_layer)

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        """Hits by rule 23: (name, ℓ)."""
        return self.curves.hits

    @cached_property
    def layers_of(self) -> list[Resolved]:
        """Resolution layers of names as they are."""
        return resolution_layers(self.hits, self.design.every_layer)

    @property
    def n_tokens(self) -> NDArray[np.int64]:
        """Tokens of each name in its carrier."""
        return np.array([name.n_tokens for name in self.names])

    @property
    def groups(self) -> list[str]:
        """One of GROUPS for each name."""
        return [GROUPS[min(n, len(GROUPS)) - 1] for n in self.n_tokens]

    @cached_property
    def forms(self) -> dict[str, FormScores]:
        """Each form that was run and has results, beside the one that it stands beside."""
        found = {form: _form_scores(self, form) for form in FORMS if form in self.results}
        return {form: scores for form, scores in found.items() if scores.entities}


def _curves(scored: Scored, stage: str, made: Sequence[Form], items: Sequence[int], layers: Sequence[int]) -> Curves:
    table = Table.of(scored.results[stage], PROMPT, len(made))
    score = SCORES["keyword"]([form.entity for form in made])
    return curves_of(table, score, items, places_of(layers, scored.choice.target_layer))


def hit_rate(found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of the ℓ above 0 with a hit: (name, ℓ) → (name)."""
    rate: NDArray[np.float64] = found[:, 1:].mean(axis=1)
    return rate


def ever_hit(found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 for a name with a hit at any ℓ: (name, ℓ) → (name)."""
    return np.asarray(found.any(axis=1), dtype=np.float64)


def _form_scores(scored: Scored, form: str) -> FormScores:
    """The names that have results in both forms."""
    design, layers = scored.design, scored.design.form_layers
    made = design.forms[form]
    missing = Table.of(scored.results[form], PROMPT, len(made)).missing
    if FORMS[form] == "plain":
        stage, others, there = "names", design.names, set(scored.items)
    else:
        stage, others = FORMS[form], design.forms[FORMS[form]]
        there = set(Table.of(scored.results[stage], PROMPT, len(others)).items())
    where = {other.entity.name: k for k, other in enumerate(others) if k in there}
    kept = [k for k, one in enumerate(made) if k not in missing and one.entity.name in where]
    pairs = [where[made[k].entity.name] for k in kept]
    mine, theirs = (_curves(scored, *args, layers).hits for args in ((form, made, kept), (stage, others, pairs)))
    more = [made[k].n_tokens - others[other].n_tokens for k, other in zip(kept, pairs, strict=True)]
    chosen = tuple(made[k] for k in kept)
    return FormScores(form, tuple(one.entity for one in chosen), chosen, mine, theirs, np.array(more, dtype=np.int64))


def lost_forms(scored: Scored) -> list[Exclusion]:
    """Names that were run in a form and have no result there, or none in the form beside it."""
    found = []
    for form in FORMS:
        kept = set(scored.forms[form].names) if form in scored.forms else set()
        lost = [made.entity.name for made in scored.design.forms[form] if made.entity.name not in kept]
        found += [Exclusion(f"{name}: {form}", "a result is missing, here or in the form beside it") for name in lost]
    return found


def all_findings(scored: Scored) -> list[Finding]:
    """Every finding, in the order of the page."""
    return [
        *headline(scored),
        *by_tokens(scored),
        *matched(scored),
        *slopes(scored),
        *forms(scored),
        *detokenisation(scored),
    ]


def headline(scored: Scored) -> list[Finding]:
    """At the placement that other entities chose, beside the controls of rule 17."""
    layer, target = scored.choice.headline, scored.choice.target_layer
    column = scored.design.every_layer.index(layer)
    curves, place = scored.curves, places_of([layer], target)
    table = Table.of(scored.results["controls"], PROMPT, len(scored.design.names))
    score = SCORES["keyword"]([name.entity for name in scored.design.names])
    controls = {"shuffled": curves.donors[:, :, column].mean(axis=1), "unpatched": curves.unpatched}
    for control in ("random", "random-state"):
        controls[control] = table.drawn(control, score, scored.items, place, DRAWS)[:, :, 0].mean(axis=1)
    about = "share of names whose keyword the text holds", f"ℓ {layer} → ℓ* {place[0][1]}"
    own = curves.own[:, column]
    return beside("keyword/headline", own, controls, scored.subjects, seed=scored.seed, about=about)


def _resolved(scored: Scored) -> list[Finding]:
    """All names; and beside them the same best of all ℓ with each donor's state (rule 17)."""
    own = np.array([layer.first is not None for layer in scored.layers_of], dtype=float)
    controls = {"shuffled": ever_resolved(scored.curves.donor_hits, scored.design.every_layer)}
    about = "share of names with a resolution layer (rule 23's criterion)", scored.choice.target
    return beside("resolved", own, controls, scored.subjects, seed=scored.seed, about=about)


def by_tokens(scored: Scored) -> list[Finding]:
    """Who is resolved, and by which layer, among names of one, two and more tokens; not matched for anything."""
    found = _resolved(scored)
    depth = scored.design.n_layers
    first = [layer.first for layer in scored.layers_of]
    p = logrank(first, scored.groups, depth)
    for group in GROUPS:
        among = [k for k, name in enumerate(scored.groups) if name == group]
        if not among:
            continue
        share = scored.mean([first[k] is not None for k in among], among=among)
        about = f"share of names of {group} tokens with a resolution layer (rule 23); p: log-rank over the groups"
        found.append(Finding.of(f"resolved/tokens-{group}", share, about, p=p))
        median = survival([first[k] for k in among], depth)
        numbers = median.median / depth, median.low / depth, median.high / depth
        about = "median resolution layer (Kaplan–Meier) as a share of depth; null where fewer than half are resolved"
        found.append(Finding(f"resolution-median/tokens-{group}", *numbers, median.n, median.n, None, about))
    return found


@dataclass(frozen=True)
class Measure:
    """A number of each name, of those at `among`."""

    name: str
    label: str
    values: NDArray[np.float64]
    among: tuple[int, ...]


def measures(scored: Scored) -> list[Measure]:
    """What is compared between names: being resolved, the share of ℓ with a hit, and the first layer, if resolved."""
    first = [layer.first for layer in scored.layers_of]
    everyone = tuple(range(len(first)))
    those = tuple(k for k in everyone if first[k] is not None)
    shares = np.array([(first[k] or 0) / scored.design.n_layers for k in those])
    return [
        Measure("resolved", "share resolved", np.array([f is not None for f in first], dtype=float), everyone),
        Measure("hit-rate", "mean share of ℓ ≥ 1 with a hit", hit_rate(scored.hits), everyone),
        Measure("first-layer", "first resolution layer as a share of depth, among the resolved", shares, those),
    ]


def matches_of(scored: Scored) -> dict[str, tuple[Measure, Matched]]:
    """Single- minus multi-token names within strata of (type, tier), by measure."""
    single, strata = scored.n_tokens == 1, [(name.entity.type, name.entity.tier) for name in scored.names]
    found = {}
    for measure in measures(scored):
        among = list(measure.among)
        if among:
            kinds, strata_of = single[among], [strata[k] for k in among]
            found[measure.name] = measure, matched_difference(measure.values, kinds, strata_of, seed=scored.seed)
    return found


def matched(scored: Scored) -> list[Finding]:
    """Single- minus multi-token names of the same type and popularity tier; Holm over the measures."""
    found = [(measure, result) for measure, result in matches_of(scored).values() if result.items]
    corrected = holm([result.p for _, result in found])
    return [
        Finding.of(
            f"single-minus-multi/{measure.name}", result.interval,
            f"{measure.label}: single- minus multi-token names of the same type and tier, {result.n_pairs} pairs; "
            f"{len(result.alone)} names without a partner left out; p by permutation within strata, Holm over measures",
            control="multi-token names", p=p,
        )
        for (measure, result), p in zip(found, corrected, strict=True)
    ]  # fmt: skip


def slopes(scored: Scored) -> list[Finding]:
    """How being resolved, and the hit rate, change with each further token: overall, and at the same popularity."""
    found = []
    tiers, tokens = [name.entity.tier for name in scored.names], scored.n_tokens
    for measure in measures(scored)[:2]:
        what = f"change of the {measure.label} with each further token of the name"
        overall = slope(measure.values, tokens, seed=scored.seed)
        found.append(Finding.of(f"slope/{measure.name}", overall, what))
        inside = slope(measure.values, tokens, seed=scored.seed, within=tiers)
        found.append(Finding.of(f"slope/{measure.name}/within-tier", inside, f"{what}, among names of the same tier"))
        for tier in sorted(set(tiers)):
            among = [k for k, other in enumerate(tiers) if other == tier]
            if len(among) >= FEWEST_IN_TIER:
                one = slope(measure.values[among], tokens[among], seed=scored.seed)
                found.append(Finding.of(f"slope/{measure.name}/tier-{tier}", one, f"{what}, in tier {tier} alone"))
    return found


def forms(scored: Scored) -> list[Finding]:
    """Each form of a name minus the form that it stands beside, entity by entity; Holm over the forms."""
    found: list[Finding] = []
    layers = ", ".join(map(str, scored.design.form_layers[1:]))
    for name, label in (("hit-rate", "share of ℓ ≥ 1 with a hit"), ("ever-hit", "share of names with a hit at any ℓ")):
        rate = hit_rate if name == "hit-rate" else ever_hit
        rates = {form: (rate(scores.hits), rate(scores.beside)) for form, scores in scored.forms.items()}
        tests = [
            sign_flip(own - other, scored.forms[form].names, seed=scored.seed) for form, (own, other) in rates.items()
        ]
        corrected = holm([test.p for test in tests])
        for (form, (own, other)), p in zip(rates.items(), corrected, strict=True):
            names = scored.forms[form].names
            interval = mean_interval(own - other, names, seed=scored.seed, bounds=DIFFERENCE, own=own)
            about = f"{label} (ℓ {layers}) of the form, minus that of the other; sign flips, Holm over the forms"
            found.append(Finding.of(f"{name}/{form}", interval, about, control=FORMS[form], p=p))
    for form, scores in scored.forms.items():
        more = mean_interval(scores.more_tokens.astype(float), scores.names, seed=scored.seed, bounds=None)
        found.append(Finding.of(f"more-tokens/{form}", more, "more tokens of the name", control=FORMS[form]))
        ever = mean_interval(ever_hit(scores.hits), scores.names, seed=scored.seed)
        found.append(Finding.of(f"ever-hit/{form}", ever, f"share of names with a hit at any of ℓ {layers}"))
    return found


def detokenisation(scored: Scored) -> list[Finding]:
    """Whether the whole word's token comes among the nearest of the last piece's states, and at which ℓ."""
    words, depth, seed = scored.words, scored.design.n_layers, scored.seed
    if not words.words:
        return []
    names = [word.text for word in words.words]
    ever = words.split[:, 1:].any(axis=1).astype(float)
    label = "share of split words whose whole-word token is among the ten nearest of the last piece's state"
    controls = {LAYER_0: words.split[:, 0].astype(float)}
    if words.others.shape[1]:
        controls = {SHUFFLED: words.others[:, :, 1:].any(axis=2).mean(axis=1), **controls}
    found = beside("detokenised/ever", ever, controls, names, seed=seed, about=(label, "some ℓ ≥ 1"))
    median = survival(words.first, depth)
    numbers = median.median / depth, median.low / depth, median.high / depth
    about = "median of the first such ℓ (Kaplan–Meier) as a share of depth; null where fewer than half have one"
    found.append(Finding("detokenised/first-layer", *numbers, median.n, median.n, None, about))
    return [*found, *_recognised(scored, names), *_plain(scored, names)]


def _recognised(scored: Scored, names: list[str]) -> list[Finding]:
    """Whether the state of a split word is nearest to the plain word's own: over the ℓ above 0, and from which one."""
    words, depth, seed = scored.words, scored.design.n_layers, scored.seed
    rate = words.recognised[:, 1:].mean(axis=1)
    controls = {CHANCE: np.full(len(names), 1 / len(names)), LAYER_0: words.recognised[:, 0].astype(float)}
    label = "share at which the state of the split word is nearer to that of the plain word than to any other's"
    found = beside("recognised", rate, controls, names, seed=seed, about=(label, "ℓ ≥ 1"))
    median = survival(words.first_recognised, depth)
    numbers = median.median / depth, median.low / depth, median.high / depth
    about = "median of the first ℓ at which it is (Kaplan–Meier) as a share of depth"
    return [*found, Finding("recognised/first-layer", *numbers, median.n, median.n, None, about)]


def _plain(scored: Scored, names: list[str]) -> list[Finding]:
    plain = scored.words.plain[:, 1:].mean(axis=1)
    about = "share of ℓ ≥ 1 at which a word that was not split has its own token among the ten nearest"
    return [Finding.of("detokenised/plain", mean_interval(plain, names, seed=scored.seed), about)]
