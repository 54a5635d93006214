"""Next tokens of two vocabularies, compared as text.

A token is what it adds to a text, its leading space included: " the" and "the" differ. A token of the source that is
no text by itself, or that the target has no single token for, cannot be said by the target and is not compared.
"""

from patchscopes.models import Model
from patchscopes.spec import Row

ENDS = "the source's own next token is a special one, or none"
PIECE = "the source's own next token is a piece of a character"
SEVERAL = "the source's own next token is no single token of the target"


class Vocabulary:
    """The tokens of a model as text."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._n_tokens = len(model.tokenizer)
        self._special = frozenset(model.tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """What the token adds to a text; "" for special ones and ids without a token."""
        if token_id not in self._texts:
            self._texts[token_id] = self._text(token_id)
        return self._texts[token_id]

    def next(self, row: Row) -> str:
        """The next token that a row has, as text."""
        return self.text(row.token_ids[0]) if row.token_ids else ""

    def has(self, text: str) -> bool:
        """Whether one token adds exactly `text`."""
        # A tokenizer that puts a space before a text has " the" for "the".
        for form in (text, text.removeprefix(" ")):
            ids = self._tokenizer(form, add_special_tokens=False)["input_ids"] if form else []
            if len(ids) == 1 and self.text(ids[0]) == text:
                return True
        return False

    def _text(self, token_id: int) -> str:
        if token_id in self._special or token_id >= self._n_tokens:
            return ""
        decoded = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        # SentencePiece takes the space of a first word away when it decodes a token by itself.
        entry = str(self._tokenizer.convert_ids_to_tokens(token_id))
        return f" {decoded}" if entry.startswith("▁") and not decoded.startswith(" ") else decoded


def incomparable(said: str, target: Vocabulary) -> str:
    """Why the target cannot say the token that the source says; "" where it can."""
    if not said:
        return ENDS
    if "\ufffd" in said:
        return PIECE
    return "" if target.has(said) else SEVERAL


def same(wanted: str, said: str) -> bool:
    """Whether both tokens add the same to a text."""
    return bool(wanted) and wanted == said


def akin(wanted: str, said: str) -> bool:
    """Whether one token begins as the other does, spaces at their edges aside: the looser measure."""
    a, b = wanted.strip(), said.strip()
    return same(wanted, said) or (bool(a and b) and (a.startswith(b) or b.startswith(a)))
