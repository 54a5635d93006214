"""What stands above a block: where its state was read, where it is written, what is masked, and what is expected."""

from collections.abc import Iterator, Mapping

from patchscopes.results.entry import quoted, ranges
from patchscopes.spec import Row

N_CHARACTERS = 60


def heading_of(first: Row, spec: Mapping[str, object]) -> str:
    """One line on the rows of one source, position and prompt, of which `first` is the first."""
    parts = [
        f"source {first.source_index} {quoted(first.source or '', N_CHARACTERS)}",
        f"token {first.token!r} at position {first.position}",
        f"prompt {quoted(first.prompt or '', N_CHARACTERS)}",
        *_places(first, spec),
    ]
    if first.source_next is not None:
        parts.append(f"its own next token {first.source_next!r}")
    answers = answers_of(first, spec)
    if answers:
        parts.append(f"expected {' or '.join(quoted(answer, 30) for answer in answers)}")
    return " · ".join(parts)


def answers_of(row: Row, spec: Mapping[str, object]) -> list[str]:
    """The answers that were expected of this row's source, as far as the specification tells."""
    answers = _source_of(row, spec).get("expect") or spec.get("expect")
    return [str(answer) for answer in answers] if isinstance(answers, list | tuple) else []


def _places(row: Row, spec: Mapping[str, object]) -> Iterator[str]:
    """Which position is overwritten, where no placeholder shows it, and what later tokens cannot attend to."""
    prompt = _prompt_of(row, spec)
    if prompt.get("at") is not None and row.target_positions:
        several = "s" if len(row.target_positions) > 1 else ""
        where = f"position{several} {ranges(row.target_positions)}"
        yield f"written at {where}, named {quoted(str(prompt['at']), N_CHARACTERS)}"
    own = _source_of(row, spec).get("mask")
    for side, mask in (("source", spec.get("mask") if own is None else own), ("prompt", prompt.get("mask"))):
        if mask is not None:
            yield f"masked in the {side} {quoted(str(mask), N_CHARACTERS)}"


def _source_of(row: Row, spec: Mapping[str, object]) -> Mapping[str, object]:
    sources = spec.get("sources")
    if not isinstance(sources, list | tuple) or row.source_index is None or row.source_index >= len(sources):
        return {}
    source = sources[row.source_index]
    return source if isinstance(source, Mapping) else {}


def _prompt_of(row: Row, spec: Mapping[str, object]) -> Mapping[str, object]:
    prompts = spec.get("prompts")
    for prompt in prompts if isinstance(prompts, list | tuple) else ():
        if isinstance(prompt, Mapping) and (prompt.get("name") or prompt.get("text")) == row.prompt:
            return prompt
    return {}
