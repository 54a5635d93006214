"""Donors (rule 16): whose states `shuffled` and `mean` write, and that an item's own are never among them."""

import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch

import patchscopes as ps
from conftest import tiny_model
from patchscopes import errors
from patchscopes.engine import Engine
from patchscopes.models import Model
from patchscopes.prompts import find_prompt, tokenize
from patchscopes.reference import Reference
from patchscopes.resolve import resolve
from patchscopes.rng import philox
from patchscopes.run import Inspection
from patchscopes.spec import Mean, Request, Source, State, Sweep
from patchscopes.vectors import make_vectors

PROMPT = find_prompt("the capital of {} is")
TEXTS = ("the cat of Spain", "hello", "go to Wales", "the capital", "say the cat")
SWEEP = Sweep(tuple(map(Source, TEXTS)), (PROMPT,), (0, 2, 3))

Place = tuple[tuple[int, ...], int]


def place_of(model: Model, text: str, position: int = -1) -> Place:
    ids = tokenize(model, text).ids
    return ids, position % len(ids)


def requests_of(model: Model, control: str, sweep: Sweep) -> list[Request]:
    return [r for r in resolve(model, replace(sweep, controls=(control,))).requests if r.control == control]


def vector_of(request: Request) -> State | Mean:
    assert request.cell is not None
    assert request.cell.write is not None
    vectors = set(request.cell.write.vectors)
    assert len(vectors) == 1, "each placeholder gets the same"
    (vector,) = vectors
    assert isinstance(vector, State | Mean)
    return vector


def donors_of(model: Model, sweep: Sweep, source_index: int, control: str = "shuffled") -> list[Place]:
    """The places that a source's control takes its states from, draw by draw (of a mean, state by state)."""
    found: list[Place] = []
    for request in requests_of(model, control, sweep):
        if request.source_index != source_index or request.source_layer != sweep.source_layers[0]:
            continue
        vector = vector_of(request)
        states = vector.states if isinstance(vector, Mean) else (vector,)
        found += [(state.ids, state.position) for state in states]
    return found


# ------------------------------------------------------------------------------------------------------------- shuffled


def test_a_draw_is_one_donor_at_every_layer_the_cells_own(llama: Model) -> None:
    both = replace(SWEEP, target_layers=(1, 3), prompts=(PROMPT, find_prompt("{} of {} is")), draws=2)
    found: dict[tuple[int | None, int], set[Place]] = {}
    for request in requests_of(llama, "shuffled", both):
        state = vector_of(request)
        assert isinstance(state, State), "raw: neither rescaled nor mixed"
        assert state.layer == request.source_layer
        found.setdefault((request.source_index, request.draw), set()).add((state.ids, state.position))
    assert len(found) == len(TEXTS) * 2
    assert all(len(places) == 1 for places in found.values())


def test_the_draws_of_a_source_are_distinct_donors_and_never_itself(llama: Model) -> None:
    sweep = replace(SWEEP, draws=4)
    for index, text in enumerate(TEXTS):
        others = {place_of(llama, other) for other in TEXTS if other != text}
        assert set(donors_of(llama, sweep, index)) == others, "with as many draws as donors, each donor once"


def test_the_key_is_seed_ids_and_position_of_the_source(llama: Model) -> None:
    """Digits of the first version: a permutation of the donors in the order of (ids, position)."""
    ids, position = place_of(llama, TEXTS[0])
    donors = sorted(place_of(llama, text) for text in TEXTS[1:])
    for seed in (0, 7):
        order = philox("shuffled", seed, ids, position).permutation(4)
        assert donors_of(llama, replace(SWEEP, draws=4, seed=seed), 0) == [donors[k] for k in order]
    assert philox("shuffled", 0, (1, 2, 3), 1).permutation(5).tolist() == [0, 4, 2, 1, 3]


def test_more_draws_and_another_order_of_sources_change_no_draw(llama: Model) -> None:
    four = donors_of(llama, replace(SWEEP, draws=4), 0)
    assert donors_of(llama, replace(SWEEP, draws=2), 0) == four[:2]
    backwards = replace(SWEEP, draws=4, sources=SWEEP.sources[::-1])
    assert donors_of(llama, backwards, len(TEXTS) - 1) == four
    seeds = {tuple(donors_of(llama, replace(SWEEP, draws=4, seed=seed), 0)) for seed in range(8)}
    assert len(seeds) > 4


def test_donors_are_of_another_item_and_the_same_kind(llama: Model) -> None:
    sources = (
        Source("the cat of Spain", item="Spain", kind="country"),
        Source("go to Spain", item="Spain", kind="country"),
        Source("go to Wales", item="Wales", kind="country"),
        Source("the capital of Syria", item="Syria", kind="country"),
        Source("hello", item="hello", kind="word"),
        Source("say the cat"),
        Source("the capital"),
        Source("say hello"),
    )
    sweep = replace(SWEEP, sources=sources[:4] + sources[5:], draws=2)
    for index in (0, 1):
        assert set(donors_of(llama, sweep, index)) == {place_of(llama, s.text) for s in sources[2:4]}
    assert set(donors_of(llama, sweep, 4)) == {place_of(llama, s.text) for s in sources[6:]}, "no kind is a kind too"
    with pytest.raises(errors.OptionError, match="about another item than 'hello'"):
        resolve(llama, replace(sweep, sources=sources, controls=("shuffled",)))


def test_an_item_is_never_its_own_donor_by_another_name(llama: Model) -> None:
    """The same text without an item is the same item; and a place that is an item's own is no donor of it."""
    again = replace(SWEEP, sources=(*SWEEP.sources, Source(TEXTS[0])), draws=4)
    own = place_of(llama, TEXTS[0])
    assert own not in donors_of(llama, again, 0)
    assert donors_of(llama, again, 0) == donors_of(llama, again, len(TEXTS))
    twice = replace(
        SWEEP, sources=(*SWEEP.sources, Source(TEXTS[0], item="other"), Source("cat", item="other")), draws=4
    )
    assert own not in donors_of(llama, twice, 0)
    assert own not in donors_of(llama, twice, len(TEXTS) + 1), "which is also the other item's own place"


def test_of_several_places_a_source_all_may_be_drawn(llama: Model) -> None:
    sweep = replace(SWEEP, at="all", sources=SWEEP.sources[:3], source_layers=(1,))
    n = [len(tokenize(llama, text)) for text in TEXTS[:3]]
    fewest = min(sum(n) - own for own in n)
    drawn: dict[tuple[int, int], set[Place]] = {}
    for request in requests_of(llama, "shuffled", replace(sweep, draws=fewest)):
        state = vector_of(request)
        assert isinstance(state, State)
        assert request.source_index is not None
        assert request.position is not None
        drawn.setdefault((request.source_index, request.position), set()).add((state.ids, state.position))
    assert len(drawn) == sum(n)
    for (index, _), places in drawn.items():
        others = {place_of(llama, TEXTS[k], p) for k in range(3) if k != index for p in range(n[k])}
        assert places <= others
        assert len(places) == fewest, "each draw another donor"
    assert any(position < len(ids) - 1 for ids, position in set.union(*drawn.values()))
    least = n.index(max(n))
    said = (
        rf"{fewest + 1} draws.*source {least} \('{TEXTS[least]}'\) has only {fewest} donors; ask for at most {fewest}"
    )
    with pytest.raises(errors.OptionError, match=said):
        resolve(llama, replace(sweep, draws=fewest + 1, controls=("shuffled",)))


@pytest.mark.parametrize("control", ["shuffled", "mean"])
def test_fewer_than_two_donors_are_refused_with_what_there_is(llama: Model, control: str) -> None:
    two = replace(SWEEP, sources=SWEEP.sources[:2], controls=(control,))
    said = rf"^{control} needs at least 2 donors for every source, and source 0 \('the cat of Spain'\) has 1: "
    with pytest.raises(errors.OptionError, match=said):
        resolve(llama, two)
    with pytest.raises(errors.OptionError, match="has 1"):
        resolve(llama, replace(two, at="all"))
    with pytest.raises(errors.OptionError, match=r"1 of the 3 sources failed and cannot be donors; give more such"):
        resolve(llama, replace(two, sources=(*two.sources, Source(""))))
    resolve(llama, replace(two, sources=SWEEP.sources[:3]))
    with pytest.raises(errors.OptionError, match="sources of kind 'word' about another item than 'a'"):
        resolve(llama, replace(two, sources=(*SWEEP.sources, Source("cat", item="a", kind="word"))))


def test_a_donors_cell_is_the_donors_own_and_runs_once(llama: Model) -> None:
    def prepared(*controls: str) -> Inspection:
        return ps.prepare(
            llama, [*TEXTS[:1], "so hello", *TEXTS[2:]], prompt=PROMPT, controls=controls, draws=4, max_new_tokens=2
        )

    own, with_donors = prepared(), prepared("shuffled")
    assert len(with_donors.requests) == 5 * len(own.requests)
    assert set(with_donors.plan.cells) == set(own.plan.cells), "nothing is run that is not run anyway"
    rows = with_donors.results()
    mine = {row.cell: row.text for row in rows if row.control is None}
    assert all(row.text == mine[row.cell] for row in rows)
    assert {row.source_index for row in rows if row.control} == set(range(len(TEXTS))), "a row is the item's"


# ----------------------------------------------------------------------------------------------------------------- mean


def test_a_mean_leaves_its_own_item_out(llama: Model) -> None:
    sources = (*SWEEP.sources, Source("go to Spain", item="Spain"), Source("Spain is", item="Spain", at="Spain"))
    sweep = replace(SWEEP, sources=sources)
    places = [place_of(llama, source.text) for source in sources[:-1]] + [place_of(llama, "Spain is", 0)]
    for index in range(len(TEXTS)):
        assert donors_of(llama, sweep, index, "mean") == sorted(place for place in places if place != places[index])
    for index in (len(TEXTS), len(TEXTS) + 1):
        assert donors_of(llama, sweep, index, "mean") == sorted(places[: len(TEXTS)])


def test_a_mean_is_made_once_a_cell_at_its_own_layer_whatever_the_draws(llama: Model) -> None:
    found = requests_of(llama, "mean", replace(SWEEP, draws=4))
    assert [(r.source_index, r.source_layer, r.draw) for r in found] == [
        (index, layer, 0) for index in range(len(TEXTS)) for layer in SWEEP.source_layers
    ]
    for request in found:
        mean = vector_of(request)
        assert isinstance(mean, Mean)
        assert {state.layer for state in mean.states} == {request.source_layer}
    backwards = requests_of(llama, "mean", replace(SWEEP, sources=SWEEP.sources[::-1]))
    assert {r.cell.identity() for r in found if r.cell} == {r.cell.identity() for r in backwards if r.cell}


def test_the_mean_of_all_tokens_weighs_each_token_alike(llama: Model) -> None:
    sweep = replace(SWEEP, at="all", sources=SWEEP.sources[:3])
    for index, text in enumerate(TEXTS[:3]):
        n_own = len(tokenize(llama, text))
        others = sorted(
            place_of(llama, other, p)
            for other in TEXTS[:3]
            if other != text
            for p in range(len(tokenize(llama, other)))
        )
        assert donors_of(llama, sweep, index, "mean") == others * n_own, "the same for each of its tokens"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_its_vector_is_the_mean_of_the_states_in_float32(family: str) -> None:
    model = tiny_model(family)
    reference = Reference(model)
    states = tuple(State(*place_of(model, text), 2) for text in TEXTS)
    means = [Mean(states[1:]), Mean(states[:-1])]
    made = make_vectors([means[0], states[0], means[1]], reference)
    expected = reference.states(states).double()
    assert made.dtype == torch.float32
    torch.testing.assert_close(made[0].double(), expected[1:].mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made[2].double(), expected[:-1].mean(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(made[1].double(), expected[0])


def test_states_of_a_mean_are_planned_with_its_cell_and_each_source_runs_once(llama: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        plan = ps.prepare(llama, TEXTS, prompt=PROMPT, source_layers=[1, 2], controls=("mean",), max_new_tokens=2).plan
    assert len(plan.cells) == 2 * 2 * len(TEXTS)
    (wave,) = plan.waves
    passes = Counter(one.ids for batch in wave.source_batches for one in batch)
    assert passes == Counter(tokenize(llama, text).ids for text in TEXTS)
    assert {len(one.states) for batch in wave.source_batches for one in batch} == {2}
    assert len(list(Engine(llama).run(plan))) == len(plan.cells)
