"""What the options of a sweep can take, and what they need of each other: all that is wrong raises an OptionError."""

import math
from collections.abc import Iterator

from patchscopes.errors import OptionError, SourceError
from patchscopes.models import Model
from patchscopes.resolve.controls import CONTROLS
from patchscopes.spec import Sweep

# A condition that must hold, and what to say where it does not.
Check = tuple[bool, str]


def check_options(model: Model, sweep: Sweep) -> None:
    """Raise an OptionError for a value that an option cannot take; `model` is the target."""
    if not sweep.sources:
        raise SourceError("no source was given; give at least one text.")
    if not sweep.prompts and any(source.prompt is None for source in sweep.sources):
        raise OptionError("no inspection prompt was given; give at least one.")
    decoding = sweep.decoding
    numbers = {"max_new_tokens": decoding.max_new_tokens, "n_samples": sweep.n_samples, "draws": sweep.draws}
    for name, value in {**numbers, "top_k": sweep.readout.top_k, "seed": sweep.seed}.items():
        if (
            type(value) is not int
        ):  # `prepare` has made Python's of NumPy's: what is hashed must look the same everywhere
            raise OptionError(f"{name} is {value!r}; it must be a whole number.")
    for holds, message in (*_numbers(model, sweep), *_candidates(sweep), *_words(sweep)):
        if not holds:
            raise OptionError(message)
    for control in sweep.controls:
        if control not in CONTROLS:
            raise OptionError(f"unknown control {control!r}; the controls are {', '.join(CONTROLS)}.")


def _numbers(model: Model, sweep: Sweep) -> Iterator[Check]:
    decoding, readout = sweep.decoding, sweep.readout
    yield decoding.max_new_tokens >= 1, f"max_new_tokens is {decoding.max_new_tokens}; it must be at least 1."
    yield (
        0 <= decoding.temperature < math.inf,
        f"temperature is {decoding.temperature}; it must be 0 (greedy) or more, and finite.",
    )
    yield sweep.n_samples >= 1, f"n_samples is {sweep.n_samples}; it must be at least 1."
    yield sweep.draws >= 1, f"draws is {sweep.draws}; it must be at least 1."
    yield (
        1 <= readout.top_k <= model.d_vocab,
        f"top_k is {readout.top_k}; it must be 1 to {model.d_vocab:,}, the size of the vocabulary.",
    )
    yield (
        sweep.n_samples == 1 or (decoding.temperature > 0 and readout.kind == "text"),
        f"{sweep.n_samples} samples would all be the same; samples need readout='text' and a temperature above 0.",
    )


def _candidates(sweep: Sweep) -> Iterator[Check]:
    """Answers to score: the call's, or every source's own."""
    kind, sources = sweep.readout.kind, sweep.sources
    own = [index for index, source in enumerate(sources) if source.candidates]
    yield (
        bool(sweep.candidates or own) or kind != "candidates",
        "readout 'candidates' needs candidates: give the answers to score, at least one.",
    )
    yield (
        not sweep.candidates or kind == "candidates",
        f"candidates are given, and readout {kind!r} does not score them: leave the readout out.",
    )
    if own:
        yield (
            kind == "candidates",
            f"source {own[0]} has candidates, and readout {kind!r} does not score them: leave the readout out.",
        )
        without = next((index for index, source in enumerate(sources) if not source.candidates), 0)
        yield (
            bool(sweep.candidates) or len(own) == len(sources),
            f"source {without} ({sources[without].text[:60]!r}) has no candidates, and the call has none that it could "
            f"take ({len(own)} of {len(sources)} sources have their own); give it some, or the call.",
        )
    named = [("", sweep.candidates), *((f"source {index}: ", sources[index].candidates) for index in own)]
    for where, candidates in named:
        yield (
            all(candidate.strip() for candidate in candidates),
            f"{where}a candidate is empty; give at least one character.",
        )
        yield (
            len(set(candidates)) == len(candidates),
            f"{where}candidate {_repeated(candidates)!r} is named twice; name each once.",
        )


def _words(sweep: Sweep) -> Iterator[Check]:
    yield all(sweep.decoding.stop), "a stop string is empty; give at least one character."
    answers = [sweep.expect, *(source.expect for source in sweep.sources)]
    yield all(answer.strip() for expect in answers for answer in expect), "an expected answer is empty."
    for index, source in enumerate(sweep.sources):
        for name, word in (("item", source.item), ("kind", source.kind)):
            yield word is None or bool(word.strip()), f"source {index}: its {name} is empty; name it, or leave it out."
    yield len(set(sweep.controls)) == len(sweep.controls), "a control is named twice; name each once."


def _repeated(values: tuple[str, ...]) -> str | None:
    return next((value for index, value in enumerate(values) if value in values[:index]), None)
