"""The nouns: a cell's identity hashes what changes the result and nothing else, and nothing can be changed."""

import dataclasses
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchscopes import spec
from patchscopes.spec import (
    Cell,
    Decoding,
    InspectionPrompt,
    Mean,
    Neutral,
    Noise,
    Readout,
    Site,
    Source,
    State,
    Sweep,
    TopToken,
    Vector,
    Write,
    Zero,
)

STATE = State((1, 2), 1, 0)
WRITE = Write(Site(1), (2,), (STATE,))
CELL = Cell("sha256:m", "float32", (5, 6, 7), WRITE, Readout(), Decoding())
SAMPLED = replace(CELL, decoding=Decoding(temperature=1.0))

# Plain numbers, of which the test makes the nouns: the check of their types draws random numbers of its own.
ids = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
states = st.tuples(ids, st.integers(0, 1), st.integers(0, 1))
means = st.lists(states, min_size=1, max_size=3).map(tuple)
vectors = st.tuples(st.sampled_from([State, Zero, Noise, Neutral]), states, states)


def made(parts: tuple[type, tuple[Any, ...], tuple[Any, ...]]) -> Vector:
    kind, first, second = parts
    if kind is State:
        return State(*first)
    if kind is Zero:
        return Zero()
    return Noise(State(*first), *second[1:]) if kind is Noise else Neutral(State(*first), State(*second))


def written(vector: Vector) -> Cell:
    return replace(CELL, write=replace(WRITE, vectors=(vector,)))


@given(first=vectors, second=vectors)
def test_identities_are_equal_exactly_where_vectors_are(first: Any, second: Any) -> None:
    a, b = made(first), made(second)
    assert (written(a).identity() == written(b).identity()) == (a == b)


def test_vectors_of_another_kind_with_the_same_fields_differ() -> None:
    bare = Zero()
    noise, neutral = Noise(STATE, 0, 0), Neutral(STATE, STATE)
    assert len({written(vector).identity() for vector in (bare, noise, neutral, STATE, Mean((STATE,)))}) == 5


@given(first=means, second=means)
@example(first=(((1,), 0, 0), ((2,), 0, 0)), second=(((1,), 0, 0),))
def test_identities_of_means_are_equal_exactly_where_their_states_are(first: Any, second: Any) -> None:
    one, other = (Mean(tuple(State(*state) for state in several)) for several in (first, second))
    assert (written(one).identity() == written(other).identity()) == (first == second)
    assert (one == other) == (first == second)
    assert written(one).identity() == written(Mean(one.states)).identity()


def test_the_digest_of_a_mean_is_the_same_on_every_machine() -> None:
    """Digits from the first version: a change would silently give every mean another identity."""
    assert Mean((STATE, State((9,), 0, 1))).digest.startswith("e05a1129015aad03")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "sha256:n"},
        {"dtype": "bfloat16"},
        {"target_ids": (5, 6)},
        {"target_ids": (5, 67)},
        {"write": None},
        {"write": replace(WRITE, site=Site(2))},
        {"write": replace(WRITE, positions=(1,))},
        {"write": replace(WRITE, positions=(1, 2), vectors=(STATE, STATE))},
        {"readout": Readout("next-token")},
        {"decoding": Decoding(19)},
        {"decoding": Decoding(eos_ids=(7,))},
        {"decoding": Decoding(stop=("a",))},
        {"decoding": Decoding(temperature=0.5)},
    ],
)
def test_what_changes_the_result_changes_the_identity(change: dict[str, object]) -> None:
    assert replace(CELL, **change).identity() != CELL.identity()  # type: ignore[arg-type]


def test_stop_strings_do_not_run_together() -> None:
    stops = [("a", "b"), ("ab",), ("a,b",), ('a","b',), ("b", "a"), ()]
    assert len({replace(CELL, decoding=Decoding(stop=stop)).identity() for stop in stops}) == len(stops)


@pytest.mark.parametrize(
    ("cell", "same"),
    [
        (CELL, replace(CELL, decoding=Decoding(seed=5))),
        (CELL, replace(CELL, sample=3)),
        (CELL, replace(CELL, readout=Readout("text", 3))),
        (SAMPLED, replace(SAMPLED, readout=Readout("text", 3))),
        (replace(CELL, readout=Readout("next-token")), replace(CELL, readout=Readout("next-token"), sample=2)),
        (
            replace(CELL, readout=Readout("next-token")),
            replace(CELL, readout=Readout("next-token"), decoding=Decoding(3, stop=("x",), temperature=0.7, seed=9)),
        ),
    ],
)
def test_what_the_readout_ignores_is_not_in_the_identity(cell: Cell, same: Cell) -> None:
    assert cell.identity() == same.identity()


def test_candidates_are_in_the_identity_in_their_order_and_decoding_is_not() -> None:
    """Ids decide, not how they are cut: (1, 2), (3,) are other answers than (1,), (2, 3)."""
    scored = replace(CELL, readout=Readout("candidates"), candidates=((1, 2), (3,)))
    others = (((1,), (2, 3)), ((3,), (1, 2)), ((1, 2),), ((12,), (3,)))
    cells = (CELL, scored, *(replace(scored, candidates=other) for other in others))
    assert len({cell.identity() for cell in cells}) == len(cells)
    same = replace(scored, readout=Readout("candidates", 3), decoding=Decoding(7, temperature=1.0), sample=4)
    assert same.identity() == scored.identity()
    assert (scored.new_tokens, scored.more_tokens, CELL.more_tokens) == (1, 2, 20)


def test_a_top_token_is_a_plain_tuple_by_name() -> None:
    """There are ten a row: a NamedTuple is made in a fraction of a frozen dataclass's time."""
    top = TopToken(" Madrid", 5, -0.25)
    assert top == (" Madrid", 5, -0.25)
    assert top._asdict() == {"token": " Madrid", "token_id": 5, "logprob": -0.25}
    with pytest.raises(AttributeError):
        top.token = "x"  # type: ignore[misc]


def test_what_samples_and_top_k_need_is_in_the_identity() -> None:
    read = replace(CELL, readout=Readout("next-token", 3))
    cells = (
        SAMPLED,
        replace(SAMPLED, sample=1),
        replace(SAMPLED, decoding=Decoding(temperature=1.0, seed=1)),
        replace(SAMPLED, decoding=Decoding(temperature=1.5)),
        read,
        replace(read, readout=Readout("next-token", 4)),
    )
    assert len({cell.identity() for cell in cells}) == len(cells)


def test_the_identity_is_the_same_in_every_process_and_version() -> None:
    """Digits from the first version: stored results are found again by them."""
    code = (
        "from patchscopes.spec import *\n"
        "w = Write(Site(1), (2,), (State((1, 2), 1, 0),))\n"
        "print(Cell('sha256:m', 'float32', (5, 6, 7), w, Readout(), Decoding()).identity())"
    )
    environment = {"PYTHONHASHSEED": "3", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == CELL.identity() == "52e2e5ac643a46c92339b422a2c208f5"


@pytest.mark.parametrize("stop", ["\ud800", "é", "\x00"])
def test_any_text_can_be_hashed(stop: str) -> None:
    assert len(replace(CELL, decoding=Decoding(stop=(stop,))).identity()) == 32


def test_every_noun_is_frozen_and_has_no_room_for_more() -> None:
    nouns = [noun for noun in vars(spec).values() if dataclasses.is_dataclass(noun) and isinstance(noun, type)]
    assert len(nouns) >= 15
    for noun in nouns:
        assert noun.__dataclass_params__.frozen, noun  # type: ignore[attr-defined]
        assert "__slots__" in vars(noun), noun
    with pytest.raises(dataclasses.FrozenInstanceError):
        CELL.model = "other"  # type: ignore[misc]


def test_equal_cells_are_one_key() -> None:
    assert len({CELL, replace(CELL), written(Zero()), written(Zero())}) == 2


def test_new_tokens_and_read_position() -> None:
    assert (CELL.new_tokens, replace(CELL, readout=Readout("next-token")).new_tokens) == (20, 1)
    assert CELL.read_position == 2


def test_a_prompts_label_is_its_name_or_its_text() -> None:
    assert InspectionPrompt("{}", name="mine").label == "mine"
    assert InspectionPrompt("{}").label == "{}"


def test_layer_pairs_pair_or_multiply() -> None:
    sweep = Sweep((Source("a"),), (InspectionPrompt("{}"),), (3, 1))
    assert list(sweep.layer_pairs()) == [(3, 3), (1, 1)]
    product = replace(sweep, target_layers=(0, 2))
    assert list(product.layer_pairs()) == [(3, 0), (3, 2), (1, 0), (1, 2)]


def test_the_nouns_can_be_read_without_torch() -> None:
    code = "import sys; import patchscopes.spec, patchscopes.plan, patchscopes.rng; print('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
