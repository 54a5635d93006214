"""Text → token ids with the characters that each covers, as the model's own tokenizer gives them (rule 8)."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from patchscopes.errors import CandidateError, OptionError, PositionError, PromptError, SourceError, VocabularyError
from patchscopes.foreign import explained, reason_of
from patchscopes.models import Model
from patchscopes.spec import Bos, Ids

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text and its tokens.

    `spans[i]` are the characters that token i covers, half open; (n, n) for a special token that stands for no text.
    `special[i]` marks special tokens, added by the tokenizer or given in the text.
    """

    text: str
    ids: Ids
    spans: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    has_bos: bool

    def __len__(self) -> int:
        return len(self.ids)

    def text_until(self, position: int) -> str:
        """The text from its start to the end of the token at `position`."""
        return self.text[: max(end for _, end in self.spans[: position + 1])]

    def table(self, mark: Sequence[int] = (), masked: Sequence[int] = ()) -> str:
        """A line per token: position, id, and text as it stands; marked positions get >, masked ones -."""
        lines = [
            f"{'>' if position in mark else '-' if position in masked else ' '} {position:>4}  {id:>7}  {token!r}"
            for position, (id, token) in enumerate(zip(self.ids, self.tokens, strict=True))
        ]
        return "\n".join(["  position     id  token", *lines])


def tokenize(model: Model, text: str, *, bos: Bos = "auto") -> Tokenized:
    """Tokenize raw text as the model's tokenizer does; no EOS is ever appended.

    `bos` "auto" leaves the BOS to the tokenizer, "always" and "never" override it. Raises OptionError where a BOS is
    asked for and the tokenizer has none, or the text cannot be encoded.
    """
    return _tokenized(model, text, bos)


def tokenize_rendered(model: Model, text: str) -> Tokenized:
    """Tokenize text that already holds its special tokens, as a rendered chat template does."""
    _check_encodable(text)
    with explained(partial(_unencoded, model, text)):
        encoding = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return _build(model, text, list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]])


def tokenize_pieces(model: Model, pieces: Sequence[str], *, bos: Bos = "auto") -> Tokenized:
    """Tokenize each of `pieces` by itself and join them: a split of the text that the tokenizer would not choose.

    A BOS goes before the first, as `tokenize` has it, and no other special token is added. Where the tokenizer puts a
    space of its own before a text, it does so before the first alone. Raises SourceError for a piece whose tokens do
    not stand for just that piece.
    """
    first = tokenize(model, pieces[0], bos=bos)
    ids, spans = list(first.ids), list(first.spans)
    at = len(pieces[0])
    for piece in pieces[1:]:
        found = _piece(model, piece)
        ids.extend(id for id, _ in found)
        spans.extend((at + start, at + end) for _, (start, end) in found)
        at += len(piece)
    return _build(model, "".join(pieces), ids, spans)


# Signs behind which a piece is tokenised where the tokenizer puts a space before every text; they seldom merge.
ANCHORS = ("\n", "?", ";", ">", "x")
# How vocabularies write a space before a word.
SPACES = ("▁", "Ġ")


def _piece(model: Model, piece: str) -> list[tuple[int, tuple[int, int]]]:
    """The ids and spans of a text that goes on from another one."""
    for anchor in ANCHORS if _adds_space(model) else ("",):
        before, joined = tokenize_rendered(model, anchor), tokenize_rendered(model, anchor + piece)
        n = len(before)
        spans = [(start - len(anchor), end - len(anchor)) for start, end in joined.spans[n:]]
        if joined.ids[:n] == before.ids and _covers(spans, piece):
            return list(zip(joined.ids[n:], spans, strict=True))
    raise SourceError(
        f"the tokenizer of {model.id} has no tokens for just the piece {piece!r}, all of it and without a space before "
        "it; split elsewhere."
    )


def _covers(spans: Sequence[tuple[int, int]], piece: str) -> bool:
    """Whether tokens stand for a piece and nothing before it: all of its characters, perhaps but for spaces."""
    covered = {place for span in spans for place in range(*span)}
    written = {place for place, sign in enumerate(piece) if not sign.isspace()}
    return bool(covered) and written <= covered <= set(range(len(piece)))


def _adds_space(model: Model) -> bool:
    """Whether the tokenizer puts a space of its own before a text that begins with a word."""
    first = str(model.tokenizer.convert_ids_to_tokens(tokenize_rendered(model, "x").ids[0]))
    return first.startswith(SPACES)


def continuation(model: Model, prompt: Tokenized, answer: str, *, chat: bool, bos: Bos = "auto") -> Ids:
    """The ids of `answer` behind `prompt`, joined with one space; `chat` where the prompt is a rendered one.

    Raises CandidateError where the joined text does not begin with the prompt's own tokens, or adds none.
    """
    text = f"{prompt.text} {answer}"
    joined = tokenize_rendered(model, text) if chat else tokenize(model, text, bos=bos)
    n = len(prompt)
    try:
        check_rows(model, joined)
    except VocabularyError as error:
        raise CandidateError(f"candidate {answer!r} cannot be scored: {error}") from error
    if beyond := [position for position, id in enumerate(joined.ids) if position >= n and id >= model.d_vocab]:
        raise CandidateError(
            f"candidate {answer!r} cannot be scored: {model.id} gives probabilities to ids below {model.d_vocab:,} "
            f"alone.\n{joined.table(beyond)}"
        )
    if joined.ids[:n] != prompt.ids or len(joined) == n or prompt.text[-1:].isspace():
        raise CandidateError(
            f"candidate {answer!r} does not continue {prompt.text[-40:]!r}: joined with one space, the prompt's own "
            "tokens change, so its probability is not that of an answer. End the prompt without a space, in a whole "
            f"word.\n{joined.table(range(n, len(joined)))}"
        )
    return joined.ids[n:]


def _check_encodable(text: str) -> None:
    """Refuse lone surrogates: bytes that were no UTF-8 on the way in, which tokenizers crash on."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{text!r} is not UTF-8; convert it.") from error


def _tokenized(model: Model, text: str, bos: Bos) -> Tokenized:
    _check_encodable(text)
    with explained(partial(_unencoded, model, text)):
        encoding = model.tokenizer(text, return_offsets_mapping=True)
    ids, spans = list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]]
    specials = set(model.tokenizer.all_special_ids)
    # An EOS, or another mark of the end such as BERT's [SEP]; the first token may be a BOS with the id of an EOS.
    while len(ids) > 1 and ids[-1] in specials and spans[-1][0] == spans[-1][1]:
        ids.pop()
        spans.pop()
    bos_id = model.tokenizer.bos_token_id
    starts = bool(ids) and ids[0] == bos_id
    if bos == "always" and not starts:
        if bos_id is None:
            raise OptionError(f"bos='always', but the tokenizer of {model.id} has no BOS token; use bos='auto'.")
        ids.insert(0, int(bos_id))
        spans.insert(0, (0, 0))
    elif bos == "never" and starts and spans[0] == (0, 0):
        del ids[0], spans[0]
    return _build(model, text, ids, spans)


def _unencoded(model: Model, text: str, error: Exception) -> OptionError:
    return OptionError(
        f"the tokenizer of {model.id} cannot encode {text[:60]!r}: {type(error).__name__}: {reason_of(error)} Change "
        "the text, or load with another tokenizer: load(…, tokenizer=tokenizer)."
    )


def _build(model: Model, text: str, ids: list[int], spans: list[tuple[int, int]]) -> Tokenized:
    tokens = tuple(_shown(model.tokenizer, id, text[start:end]) for id, (start, end) in zip(ids, spans, strict=True))
    special_ids = set(model.tokenizer.all_special_ids)
    # A token for what is unknown stands for text, though it is counted among the special ones.
    named = [str(name) for name in model.tokenizer.convert_ids_to_tokens(ids)]
    special = tuple(
        id in special_ids and (start == end or text[start:end].strip() == name.strip())
        for id, name, (start, end) in zip(ids, named, spans, strict=True)
    )
    has_bos = bool(ids) and ids[0] == model.tokenizer.bos_token_id
    return Tokenized(text, tuple(ids), tuple(spans), tokens, special, has_bos)


def _shown(tokenizer: PreTrainedTokenizerBase, id: int, covered: str) -> str:
    """The characters that a token covers; its vocabulary entry where it covers none, or only part of one."""
    decoded = str(tokenizer.decode([id], clean_up_tokenization_spaces=False))
    is_text = covered and "\ufffd" not in decoded and bool(covered.strip()) == bool(decoded.strip())
    return covered if is_text else str(tokenizer.convert_ids_to_tokens(id))


def verify_spans(model: Model, tokenized: Tokenized, span: Span | None = None) -> None:
    """Raise PositionError unless the spans are those of the ids (rule 6): in order, and each token's own text.

    With `span`, characters that a phrase covers, the tokens of the phrase must be so. What the tokenizer rewrites
    elsewhere takes nothing from the phrase, as long as the tokens on one side of it make up the text on that side.
    """
    last, special_ids = 0, set(model.tokenizer.all_special_ids)
    elsewhere: list[int] = []
    for position, (id, (start, end)) in enumerate(zip(tokenized.ids, tokenized.spans, strict=True)):
        if id in special_ids or start == end or _is_dummy_prefix(model, tokenized, position):
            continue
        decoded = str(model.tokenizer.decode([id], clean_up_tokenization_spaces=False))
        covered = tokenized.text[start:end]
        if "\ufffd" not in decoded:  # else a part of a character: its neighbours cover it too
            if start < last and not (end == last and _decomposes(covered[-1])):
                raise _unsound(tokenized, (elsewhere or [position])[0])
            if not _stands_for(decoded, covered):
                elsewhere.append(position)
        last = max(last, end)
    for position in elsewhere:
        first, end = tokenized.spans[position]
        if span is None or (first < span[1] and end > span[0]):
            raise _unsound(tokenized, position)
    if (
        span is not None
        and elsewhere
        and not (_made_up(model, tokenized, (0, span[0])) or _made_up(model, tokenized, (span[1], len(tokenized.text))))
    ):
        raise _unsound(tokenized, elsewhere[0])


def _stands_for(decoded: str, covered: str) -> bool:
    """Whether a token's text is what it covers, but for case, outer spaces, "▁" and the normal form.

    A tokenizer that decomposes characters may part one of them ("½", "é") between tokens that all cover it.
    """
    # A continuation keeps WordPiece's mark when it is decoded by itself.
    return any(_is_or_parts(said, covered.strip()) for said in (decoded, decoded.removeprefix("##")))


def _is_or_parts(decoded: str, covered: str) -> bool:
    said, whole = _folded(decoded), _folded(covered)
    if said == whole or _unmarked(said) == _unmarked(whole):
        return True
    begins = whole.startswith(said) and len(said) > len(_folded(covered[:-1]))
    ends = whole.endswith(said) and len(said) > len(_folded(covered[1:]))
    return bool(said) and (begins or ends or (len(covered) == 1 and said in whole))


def _decomposes(character: str) -> bool:
    """Whether a character is several in some normal form, so that several tokens may cover it."""
    return len(unicodedata.normalize("NFKD", character)) > 1


def _made_up(model: Model, tokenized: Tokenized, place: Span) -> bool:
    """Whether the tokens of the text between two places make up that text, but for what normalizers rewrite."""
    special_ids = set(model.tokenizer.all_special_ids)
    pairs = zip(tokenized.ids, tokenized.spans, strict=True)
    inside = [(id, span) for id, span in pairs if place[0] <= span[0] and span[1] <= place[1]]
    text = list(tokenized.text)
    for id, (start, end) in inside:
        if id in special_ids:
            text[start:end] = [""] * (end - start)
    ids = [id for id, _ in inside if id not in special_ids]
    said = str(model.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return _letters(said) == _letters("".join(text[place[0] : place[1]]))


def _is_dummy_prefix(model: Model, tokenized: Tokenized, position: int) -> bool:
    """Whether this is the space that SentencePiece puts before a text, whose span is that of what follows it."""
    after = tokenized.spans[position + 1 : position + 2]
    decoded = str(model.tokenizer.decode([tokenized.ids[position]], clean_up_tokenization_spaces=False))
    return not decoded.strip() and bool(after) and after[0][0] == tokenized.spans[position][0]


def check_rows(model: Model, tokenized: Tokenized) -> None:
    """Raise VocabularyError for ids that the model has no embedding for, as of tokens added to the tokenizer alone."""
    embedding: Any = model.hf.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    rows = int(getattr(embedding, "num_embeddings", None) or (model.d_vocab if weight is None else weight.shape[0]))
    beyond = [position for position, id in enumerate(tokenized.ids) if id >= rows]
    if beyond:
        name = str(model.tokenizer.convert_ids_to_tokens(tokenized.ids[beyond[0]]))
        raise VocabularyError(
            f"{tokenized.text!r} has the token {name!r} (id {tokenized.ids[beyond[0]]:,}), and the embedding of "
            f"{model.id} has {rows:,} rows: the tokenizer was extended and the model was not. Resize the model "
            f"(resize_token_embeddings), or leave the token out.\n{tokenized.table(beyond)}"
        )


def bos_caution(model: Model, ids: Ids, written: str, what: str) -> str | None:
    """Say that `what` has a BOS behind its first one; None where it has not.

    Directly behind the first it is one wherever it comes from. Further on it is where the user has `written` it: chat
    templates may part turns by it, and texts may by one that is also an EOS.
    """
    bos = model.tokenizer.bos_token_id
    if bos is None or ids[:1] != (bos,) or bos not in ids[1:]:
        return None
    position = ids.index(bos, 1)
    spelled = str(model.tokenizer.bos_token) in written and bos not in model.eos_ids
    if position > 1 and not spelled:
        return None
    return (
        f"two BOS: {what} has {model.tokenizer.bos_token} at positions 0 and {position}, which {model.id} was not "
        "trained on; leave it out of the text where the tokenizer or the chat template puts one, or use bos='never'."
    )


def cautions(model: Model, tokenized: Tokenized) -> list[str]:
    """What to beware of before reading states of these tokens."""
    found = []
    if not tokenized.has_bos:
        found.append(
            "no BOS: position 0 is an attention sink, whose state is large and says little of its token; "
            "put what you ask about further right"
        )
        if model.architecture.needs_bos:
            found.append(f"{model.id} was trained with a BOS and is another model without; use bos='always'")
    given = [i for i, special in enumerate(tokenized.special) if special and i > 0]
    if given:
        found.append(f"special tokens inside the text, at positions {', '.join(map(str, given))}")
    if twice := bos_caution(model, tokenized.ids, tokenized.text, "the text"):
        found.append(twice)
    pairs = enumerate(zip(tokenized.spans, tokenized.spans[1:], strict=False))
    parts = [i for i, (a, b) in pairs if a == b and a[0] < a[1] and not _is_dummy_prefix(model, tokenized, i)]
    if parts:
        found.append(
            f"one character is split over tokens at positions {', '.join(map(str, parts))}; none holds it alone"
        )
    try:
        verify_spans(model, tokenized)
    except PositionError as error:
        found.append(str(error).splitlines()[0])
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("▁", " ").casefold().strip()


def _unmarked(text: str) -> str:
    """`text` without its accents, which some tokenizers leave out."""
    return "".join(sign for sign in text if not unicodedata.combining(sign))


def _letters(text: str) -> str:
    """`text` without white space, accents and what is not seen."""
    seen = (sign for sign in _unmarked(_folded(text)) if unicodedata.category(sign)[0] != "C")
    return "".join("".join(seen).split())


def _unsound(tokenized: Tokenized, position: int) -> PositionError:
    return PositionError(
        f"the tokenizer's character offsets do not fit its ids at position {position} of {tokenized.text!r}, so a "
        f"phrase or placeholder cannot be located; name the position by its number.\n{tokenized.table([position])}"
    )


def render_chat(model: Model, user: str, reply: str) -> str:
    """`user` as a user's turn through the model's chat template, and the beginning of the assistant's answer."""
    if not model.tokenizer.chat_template:
        raise PromptError(
            f"this prompt is a chat, and {model.id} has no chat template; use a plain prompt, or an instruct model."
        )
    with explained(lambda error: _unrendered(model, error)):
        rendered = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
        )
    return f"{rendered}{reply}"


def _unrendered(model: Model, error: Exception) -> PromptError:
    return PromptError(
        f"the chat template of {model.id} does not render a user's turn: {type(error).__name__}: {reason_of(error)} "
        "Use a plain prompt, or load with a tokenizer whose chat_template does: load(…, tokenizer=tokenizer)."
    )
