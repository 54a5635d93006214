"""What a user writes for layers → a tuple of layers, 0…n_layers (rule 1)."""

import re
from collections.abc import Iterable, Sequence

from patchscopes.errors import LayerError
from patchscopes.numbers import whole

Layers = str | int | range | Sequence[int]


def parse_layers(value: Layers, n_layers: int) -> tuple[int, ...]:
    """Layers from "all", an int, a range, a sequence, or text such as "0-12" (inclusive) and "0-4,8".

    Raises LayerError for a layer outside 0…n_layers, a negative or repeated one, or none at all.
    """
    layers = _parse_text(value, n_layers) if isinstance(value, str) else _parse_numbers(value)
    if not layers:
        raise LayerError(f"{value!r} names no layer; give 0 to {n_layers}, e.g. 0-{n_layers}, or all.")
    for layer in layers:
        if not 0 <= layer <= n_layers:
            raise LayerError(
                f"layer {layer} is out of range: this model has layers 0 (what enters block 1) to {n_layers} (the last "
                "block's output); negative layers are refused because tools disagree on what they mean."
            )
    if len(set(layers)) < len(layers):
        raise LayerError(f"{value!r} names a layer twice; name each once.")
    return layers


def _parse_text(text: str, n_layers: int) -> tuple[int, ...]:
    if text.strip() == "all":
        return tuple(range(n_layers + 1))
    layers: list[int] = []
    for part in text.split(","):
        single = re.fullmatch(r"-?[0-9]{1,9}", part.strip())
        span = re.fullmatch(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})", part.strip())
        if single:
            layers.append(int(part))
        elif span and int(span[1]) <= int(span[2]):
            layers.extend(range(int(span[1]), int(span[2]) + 1))
        elif span:
            raise LayerError(f"{text!r} runs backwards at {part!r}; write {span[2]}-{span[1]}.")
        else:
            raise LayerError(f"{text!r} is no list of layers at {part!r}; write all, 3, 0-12 or 0-4,8.")
    return tuple(layers)


def _parse_numbers(value: object) -> tuple[int, ...]:
    one = whole(value)
    several = isinstance(value, Iterable) and not isinstance(value, bytes | bytearray)
    numbers: tuple[object, ...] = tuple(value) if one is None and several else (value,)  # type: ignore[arg-type]
    layers = tuple(map(whole, numbers))
    if None in layers:
        raise LayerError(f"{numbers[layers.index(None)]!r} is no layer; layers are whole numbers, or all.")
    return tuple(layer for layer in layers if layer is not None)
