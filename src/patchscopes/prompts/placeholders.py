"""An inspection prompt → ids and the positions that are written (rule 7): its placeholders, or what `at` names."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from patchscopes.errors import OptionError, PlaceholderError, PositionError
from patchscopes.models import Model
from patchscopes.prompts.positions import resolve_mask, resolve_positions
from patchscopes.prompts.tokens import Tokenized, render_chat, tokenize, tokenize_rendered, verify_spans
from patchscopes.spec import Bos, InspectionPrompt

MARK = "{}"
DEFAULT_PLACEHOLDER = "x"
# Words that are one token in nearly every vocabulary: putting one in the placeholder's stead must change that id alone.
PROBES = ("x", "a", "1", "?", "cat", "the", "B", "go", "and", "s")
N_PROBES = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A tokenized inspection prompt, the positions that are written, and the word that stands there.

    `placeholder` is None where the prompt has none and its position is named. To `masked` no later token attends.
    """

    prompt: InspectionPrompt
    tokenized: Tokenized
    positions: tuple[int, ...]
    placeholder: str | None
    masked: tuple[int, ...] = ()


def resolve_target(model: Model, prompt: InspectionPrompt, *, bos: Bos = "auto") -> Target:
    """Tokenize `prompt` with its placeholder in each `{}` and find where it stands.

    Raises PlaceholderError unless exactly one token covers each placeholder (at most with the space before it) and
    another one-token word in its stead changes that id alone; PositionError where what is written, or masked, is not
    to be found.
    """
    target = _placed(model, prompt, bos) if MARK in prompt.text else _named(model, prompt, bos)
    if prompt.mask is None:
        return target
    masked = resolve_mask(model, target.tokenized, prompt.mask)
    if hidden := sorted(set(masked) & set(target.positions)):
        raise PositionError(
            f"position {hidden[0]} of {target.tokenized.text!r} is written and masked: no later token would see what "
            f"is written; mask another phrase than {prompt.mask!r}.\n{target.tokenized.table(masked)}"
        )
    return replace(target, masked=masked)


def _named(model: Model, prompt: InspectionPrompt, bos: Bos) -> Target:
    """A prompt without placeholder, whose position is named."""
    if prompt.at is None:
        raise PlaceholderError(
            f'"{{}}" occurs 0 times in {prompt.text!r}; mark the token to overwrite, e.g. "The capital of {{}}", or '
            "name it by target_at."
        )
    tokenized = fill(model, prompt, "", bos=bos)
    return Target(prompt, tokenized, resolve_positions(model, tokenized, prompt.at), None)


def _placed(model: Model, prompt: InspectionPrompt, bos: Bos) -> Target:
    """A prompt with a placeholder in each `{}`."""
    if prompt.at is not None:
        raise OptionError(
            f"{prompt.text!r} has {{}} for the token to overwrite, and target_at={prompt.at!r} names one: give one of "
            "them."
        )
    word = prompt.placeholder if prompt.placeholder is not None else DEFAULT_PLACEHOLDER
    if not word or word != word.strip() or MARK in word:
        raise OptionError(f"placeholder {word!r} is not a word; give one token without spaces, e.g. x.")
    tokenized = fill(model, prompt, word, bos=bos)
    starts = list(_placements(model, prompt, word, tokenized))
    try:
        for start in starts:
            verify_spans(model, tokenized, (start, start + len(word)))
    except PositionError as error:
        raise PlaceholderError(str(error)) from error
    positions = tuple(_covering(tokenized, start, word) for start in starts)
    _check_alone(model, Target(prompt, tokenized, positions, word), bos)
    return Target(prompt, tokenized, positions, word)


def fill(model: Model, prompt: InspectionPrompt, word: str, *, bos: Bos = "auto") -> Tokenized:
    """Tokenize `prompt` with `word` in each `{}`."""
    text = prompt.text.replace(MARK, word)
    if prompt.chat:
        return tokenize_rendered(model, render_chat(model, text, prompt.reply))
    return tokenize(model, text + prompt.reply, bos=bos)


def _placements(model: Model, prompt: InspectionPrompt, word: str, tokenized: Tokenized) -> Iterable[int]:
    """Where, in characters of the tokenized text, each placeholder starts."""
    template = render_chat(model, prompt.text, prompt.reply) if prompt.chat else prompt.text + prompt.reply
    starts: list[int] = []
    at = template.find(MARK)
    while at >= 0:
        starts.append(at + len(starts) * (len(word) - len(MARK)))
        at = template.find(MARK, at + len(MARK))
    if any(tokenized.text[start : start + len(word)] != word for start in starts):
        raise PlaceholderError(
            f"the chat template of {model.id} changes the text around the placeholder in {prompt.text!r}; "
            "use a plain prompt."
        )
    return starts


def _inside(tokenized: Tokenized, start: int, end: int) -> list[int]:
    return [position for position, (a, b) in enumerate(tokenized.spans) if a < end and b > start]


def _covering(tokenized: Tokenized, start: int, word: str) -> int:
    inside = _inside(tokenized, start, start + len(word))
    if len(inside) != 1:
        raise PlaceholderError(
            f"placeholder {word!r} takes {len(inside)} tokens in {tokenized.text!r}; it must be one. "
            f"Give another, e.g. placeholder='x'.\n{tokenized.table(inside)}"
        )
    a, b = tokenized.spans[inside[0]]
    if tokenized.text[a:b].strip() != word:
        raise PlaceholderError(
            f"placeholder {word!r} merges with its neighbour into the token {tokenized.text[a:b]!r} in "
            f"{tokenized.text!r}; set it apart by a space, or give another.\n{tokenized.table(inside)}"
        )
    return inside[0]


def _splits(model: Model, tokenized: Tokenized, placed: tuple[int, str], *, spaced: bool) -> bool:
    """Whether the word at (start, word) is not one token by itself, or is one that holds a space unlike `spaced`."""
    start, word = placed
    inside = _inside(tokenized, start, start + len(word))
    if not inside:
        return True
    covered = tokenized.text[tokenized.spans[inside[0]][0] : tokenized.spans[inside[-1]][1]]
    apart = covered.strip() == word
    return apart and (len(inside) != 1 or _begins_with_space(model, tokenized, inside[0]) != spaced)


def _touches(text: str, start: int, word: str) -> bool:
    """Whether something that is no white space stands directly before or behind the word at `start`."""
    before, behind = text[:start][-1:], text[start + len(word) :][:1]
    return bool(before.strip() or behind.strip())


def _begins_with_space(model: Model, tokenized: Tokenized, position: int) -> bool:
    """Whether a token holds the space before its word, which some tokenizers trim off spans and others off texts."""
    start, end = tokenized.spans[position]
    decoded = str(model.tokenizer.decode([tokenized.ids[position]], clean_up_tokenization_spaces=False))
    return tokenized.text[start:end].startswith(" ") or decoded.startswith(" ")


def _check_alone(model: Model, target: Target, bos: Bos) -> None:
    """Another one-token word in the placeholder's stead must change the ids at its positions and no others."""
    tried = 0
    assert target.placeholder is not None
    own = [_begins_with_space(model, target.tokenized, position) for position in target.positions]
    for probe in PROBES:
        if probe == target.placeholder:
            continue
        other = fill(model, target.prompt, probe, bos=bos)
        starts = list(_placements(model, target.prompt, probe, other))
        if any(_splits(model, other, (start, probe), spaced=spaced) for start, spaced in zip(starts, own, strict=True)):
            continue  # not one token here, space included: it proves nothing
        if not probe.isalnum() and any(_touches(other.text, start, probe) for start in starts):
            continue  # marks run together ("??") where words do not
        changed = {i for i, (a, b) in enumerate(zip(target.tokenized.ids, other.ids, strict=False)) if a != b}
        if len(other) != len(target.tokenized) or not changed <= set(target.positions):
            raise PlaceholderError(
                f"placeholder {target.placeholder!r} is tied to its neighbours in {target.tokenized.text!r}: with "
                f"{probe!r} in its stead other tokens change too, so what is patched would depend on the word; set it "
                f"apart by spaces.\n{target.tokenized.table(target.positions)}"
            )
        tried += 1
        if tried == N_PROBES:
            return
    if not tried:
        raise PlaceholderError(
            f"no other one-token word was found in the vocabulary of {model.id} to prove that {target.placeholder!r} "
            "stands alone; give another placeholder."
        )
