"""A specification in a file: TOML, YAML or JSON whose keys are the options of `load` and `inspect`, and the sources.

    model = "smollm2-135m"            # and revision, dtype, device, trust_remote_code, adapter
    sources = ["I went to Spain", {text = "I went to Japan", at = "Japan", expect = ["Tokyo"]}]
    prompt = "The capital city of {}" # and every other option of inspect()

The options' types are read from `api.InspectOptions`, so that a new one is known here at once.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from patchscopes import textfile
from patchscopes.api import InspectOptions
from patchscopes.errors import OptionError, SourceError, SpecError, SpecFileError
from patchscopes.models.registry import DEFAULT_MODEL
from patchscopes.sizes import parse_bytes
from patchscopes.sources import read_sources_file, source_from
from patchscopes.spec import InspectionPrompt, Source

T = TypeVar("T")

LOAD_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "model": str,
        "revision": str | None,
        "dtype": str,
        "device": str,
        "trust_remote_code": bool,
        "adapter": str | None,
    }
)
# Where rows are kept is said where the file is run; a model and a mapping are named, the latter by its file.
NAMED: Mapping[str, Any] = MappingProxyType({"target_model": str | None, "mapping": str | None})
INSPECT_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {key: NAMED.get(key, hint) for key, hint in get_type_hints(InspectOptions).items() if key != "run"}
)
SOURCES = ("sources", "sources_file")
# Another way to write memory_bytes, as on the command line: "8GiB".
MEMORY = "memory"
KEYS = (*LOAD_OPTIONS, *SOURCES, *INSPECT_OPTIONS, MEMORY)
WORDS: Mapping[Any, str] = MappingProxyType(
    {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
)


@dataclass(frozen=True, slots=True)
class SpecFile:
    """What a specification file asks for. `load_options` and `options` go to `load` and `inspect` as they are.

    `target_model` is another to load with the same options but `revision`, and to give to `inspect`.
    """

    model: str
    load_options: Mapping[str, Any]
    sources: tuple[Source, ...]
    options: Mapping[str, Any]
    target_model: str | None = None


def read_spec(path: str | PathLike[str]) -> SpecFile:
    """Read and check the specification at `path`; its ending, .toml, .yaml, .yml or .json, says what it is.

    Raises SpecFileError, which names every key at fault. What a value means is checked by `prepare`, with a model.
    """
    file = Path(path)
    values = _parse(file)
    faults = [_unknown(key) for key in values if key not in KEYS]
    options = {**LOAD_OPTIONS, **INSPECT_OPTIONS}
    faults += [
        f"{key} is {_shown(values[key])}; it must be {_wanted(hint)}{_near(values[key], hint)}."
        for key, hint in options.items()
        if key in values and not _fits(values[key], hint)
    ]
    memory = _checked(lambda: _memory(values), faults)
    sources = _checked(lambda: _sources(values, file), faults)
    if faults:
        raise SpecFileError(
            f"{file}: " + "\n".join(["", *(f"  {fault}" for fault in faults)] if faults[1:] else faults)
        )
    load_options = {key: values[key] for key in LOAD_OPTIONS if key in values and key != "model"}
    asked: dict[str, Any] = {
        key: float(values[key]) if hint is float else values[key]
        for key, hint in INSPECT_OPTIONS.items()
        if key in values
    }
    if "prompt" in asked:
        asked["prompt"] = _prompt(asked["prompt"])
    if memory is not None:
        asked["memory_bytes"] = memory
    if asked.get("mapping") is not None:
        asked["mapping"] = str(file.parent / asked["mapping"])
    target = asked.pop("target_model", None)
    return SpecFile(values.get("model", DEFAULT_MODEL), load_options, tuple(sources or ()), asked, target)


def _checked(read: Callable[[], T], faults: list[str]) -> T | None:
    """What `read` gives; where it raises, what it says is one of the faults."""
    try:
        return read()
    except SpecError as error:
        faults.append(str(error))
        return None


def _memory(values: Mapping[str, Any]) -> int | None:
    """The budget that `memory` names."""
    if MEMORY not in values:
        return None
    if values.get("memory_bytes") is not None:
        raise OptionError("both memory and memory_bytes are given; give one of them.")
    memory = values[MEMORY]
    return parse_bytes(memory if isinstance(memory, str) else json.dumps(memory, default=str))


def _parse(file: Path) -> dict[str, Any]:
    """The mapping that the file holds."""
    parse = PARSERS.get(file.suffix.lower())
    if parse is None:
        raise SpecFileError(f"{file}: its ending says not what it is; name it {', '.join(PARSERS)}.")
    try:
        text = textfile.text_of(file.read_bytes())
    except OSError as error:
        raise SpecFileError(f"cannot read {file}: {error.strerror}; give a specification file.") from error
    except ValueError as error:
        raise SpecFileError(f"{file} {error}") from error
    try:
        values = parse(text)
    except ValueError as error:  # of TOML, JSON and a key given twice; _yaml makes one of YAML's own
        raise SpecFileError(f"{file} cannot be read as {file.suffix[1:].upper()}: {error}.") from error
    if not isinstance(values, dict):
        raise SpecFileError(f"{file} holds no keys with values; it begins like: model = …, sources = […].")
    return {str(key): value for key, value in _present(values).items()}


def _present(value: Any) -> Any:
    """`value` without the keys whose value is null, in whatever it holds: they are absent."""
    if isinstance(value, dict):
        return {key: _present(part) for key, part in value.items() if part is not None}
    return [_present(entry) for entry in value] if isinstance(value, list) else value


def _yaml(text: str) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A safe loader that lets no key be given twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002
            textfile.once((str(key.value), None) for key, _ in node.value)
            made: dict[str, Any] = super().construct_mapping(node, deep=deep)
            return made

    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


PARSERS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {".toml": tomllib.loads, ".yaml": _yaml, ".yml": _yaml, ".json": textfile.parsed}
)


def _sources(values: Mapping[str, Any], file: Path) -> list[Source]:
    """The sources, in the file itself or in the one that it names, relative to it."""
    given = [key for key in SOURCES if key in values]
    if len(given) != 1:
        found = "both sources and sources_file are given" if given else "neither sources nor sources_file is given"
        raise SourceError(f"{found}; give one of them.")
    if given == ["sources_file"]:
        name = values["sources_file"]
        if not isinstance(name, str) or name == "-":
            raise SourceError(
                f"sources_file is {_shown(name)}; it must be the path of a file, relative to {file.name}."
            )
        return read_sources_file(str(file.parent / name))
    sources = values["sources"]
    if not isinstance(sources, list) or not sources:
        raise SourceError(f"sources is {_shown(sources)}; it must be a list of at least one text.")
    return [
        Source(entry) if isinstance(entry, str) else source_from(entry, f"sources[{index}]")
        for index, entry in enumerate(sources)
    ]


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, KEYS, n=1)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KEYS)}.")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, those apart that no file can hold."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(part for part in parts if part not in (range, NoneType))  # null is absent


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value`, as a file gives it, is of the type `hint`."""
    return any(_fits_one(value, part) for part in _parts(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    match get_origin(hint) or hint:
        case origin if origin is Literal:
            return value in get_args(hint) and not isinstance(value, bool)
        case origin if origin in (Sequence, list, tuple):
            return isinstance(value, list) and all(_fits(entry, get_args(hint)[0]) for entry in value)
        case origin if origin in (Mapping, dict):
            return isinstance(value, dict) and all(
                _fits(part, kind) for pair in value.items() for part, kind in zip(pair, get_args(hint), strict=True)
            )
        case kind if is_dataclass(kind):
            hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
            return (
                isinstance(value, dict)
                and "text" in value
                and all(key in hints and _fits(part, hints[key]) for key, part in value.items())
            )
        case kind if kind is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case kind if kind in WORDS:
            return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        case _:
            raise AssertionError(f"no file can hold a {hint}")


def _prompt(value: Any) -> Any:
    """An inspection prompt, or several, with each table made into an InspectionPrompt."""
    if isinstance(value, list):
        return [_prompt(entry) for entry in value]
    return InspectionPrompt(**value) if isinstance(value, dict) else value


def _wanted(hint: Any) -> str:
    """What a value must be, in words."""
    return " or ".join(dict.fromkeys(_wanted_one(part) for part in _parts(hint)))


def _wanted_one(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if origin in (Sequence, list, tuple):
        kinds = [_wanted_one(part).removeprefix("a ") for part in _parts(get_args(hint)[0])]
        return "a list (of " + " or ".join(f"{kind}s" for kind in kinds) + ")"
    if origin in (Mapping, dict):
        return "a table"
    if is_dataclass(hint):
        return "a table with " + ", ".join(field.name for field in fields(hint))
    return WORDS[hint]


def _near(value: Any, hint: Any) -> str:
    """A guess at the choice that was meant."""
    choices = [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
