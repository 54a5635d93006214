"""What a user writes for layers (rule 1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.errors import LayerError
from patchscopes.resolve import parse_layers

N = 5


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        (" all ", (0, 1, 2, 3, 4, 5)),
        ("0-5", (0, 1, 2, 3, 4, 5)),
        ("0-2,5", (0, 1, 2, 5)),
        ("5, 0 - 1", (5, 0, 1)),
        ("3", (3,)),
        ("3-3", (3,)),
        ("007", None),
        (3, (3,)),
        (0, (0,)),
        (range(0, 6, 2), (0, 2, 4)),
        (range(3, 0, -1), (3, 2, 1)),
        ([5, 0], (5, 0)),
        ((1,), (1,)),
        (np.int64(3), (3,)),
        ([np.int32(1), 2], (1, 2)),
    ],
)
def test_the_grammar(value: object, layers: tuple[int, ...] | None) -> None:
    if layers is None:
        with pytest.raises(LayerError):
            parse_layers(value, N)  # type: ignore[arg-type]
        return
    found = untyped(value)
    assert found == layers
    assert all(type(layer) is int for layer in found), "plain ints, whatever was given: they are hashed"


def untyped(value: object) -> tuple[int, ...]:
    """`parse_layers` without the check of its annotations, as outside of tests."""
    return getattr(parse_layers, "__wrapped__", parse_layers)(value, N)


@pytest.mark.parametrize("value", [np.arange(3), {2: "two"}, np.array([1, 2], dtype=np.int8), {1, 2}])
def test_other_collections_of_whole_numbers_are_taken(value: object) -> None:
    assert all(type(layer) is int for layer in untyped(value))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is no list of layers"),
        (" ", "is no list of layers"),
        ("0-", "is no list of layers"),
        ("-", "is no list of layers"),
        ("0--1", "is no list of layers"),
        ("-2-1", "is no list of layers"),
        ("5-2", "runs backwards"),
        ("1,,2", "is no list of layers"),
        ("1,", "is no list of layers"),
        ("1;2", "is no list of layers"),
        ("1.0", "is no list of layers"),
        ("all,1", "is no list of layers"),
        ("ALL", "is no list of layers"),
        ("9" * 5000, "is no list of layers"),
        ("0-" + "9" * 5000, "is no list of layers"),
        ("6", "layer 6 is out of range"),
        ("0-6", "layer 6 is out of range"),
        ("-1", "layer -1 is out of range.*negative layers are refused"),
        (-1, "layer -1 is out of range.*negative layers are refused"),
        (6, "layer 6 is out of range"),
        ([0, -1], "negative layers are refused"),
        (range(-1, 2), "negative layers are refused"),
        ([], "names no layer"),
        ((), "names no layer"),
        (range(3, 3), "names no layer"),
        ("1,1", "names a layer twice"),
        ("0-2,2", "names a layer twice"),
        ([1, 1], "names a layer twice"),
        ([1, np.int64(1)], "names a layer twice"),
        (True, "True is no layer"),
        ([0, False], "False is no layer"),
        (np.bool_(True), "is no layer"),
        (1.0, "1.0 is no layer"),
        ([0, 1.0], "1.0 is no layer"),
        ([None], "None is no layer"),
        (None, "None is no layer"),
        (["1"], "'1' is no layer"),
        (np.array([[1]]), "is no layer"),
    ],
)
def test_what_is_refused_and_why(value: object, reason: str) -> None:
    with pytest.raises(LayerError, match=reason):
        untyped(value)


def test_a_model_with_one_block_has_two_layers() -> None:
    assert parse_layers("all", 1) == (0, 1)
    with pytest.raises(LayerError, match=r"0 \(what enters block 1\) to 1"):
        parse_layers(2, 1)


@given(n=st.integers(0, 60), data=st.data())
def test_text_and_numbers_mean_the_same(n: int, data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.integers(0, n), unique=True, min_size=1))
    assert parse_layers(",".join(map(str, layers)), n) == tuple(layers) == parse_layers(layers, n)
    low, high = min(layers), max(layers)
    assert parse_layers(f"{low}-{high}", n) == parse_layers(range(low, high + 1), n)


@given(text=st.text("0123456789-,al ٣", max_size=8))
def test_any_text_gives_layers_or_a_layer_error(text: str) -> None:
    try:
        layers = parse_layers(text, N)
    except LayerError:
        return
    assert layers
    assert len(set(layers)) == len(layers)
    assert all(0 <= layer <= N for layer in layers)


@pytest.mark.parametrize("value", ["\uff13", "0-\uff13", "٣", b"\x01", True, np.True_, 1.0, [True], np.array([1.0])])
def test_what_only_looks_like_layers_is_refused(value: object) -> None:
    """Digits of other scripts are text, and bytes are no numbers."""
    with pytest.raises(LayerError):
        untyped(value)
