"""Text → ids and the characters that they cover, on every kind of tokenizer (rule 8)."""

import copy
import unicodedata

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors

import families
from conftest import tiny_model
from odd_tokenizers import MAKERS, model_with, shipped
from patchscopes import errors
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import resolve_positions, tokenize
from patchscopes.prompts.tokens import (
    Tokenized,
    _stands_for,
    bos_caution,
    cautions,
    render_chat,
    tokenize_rendered,
    verify_spans,
)

KINDS = (*MAKERS, "byte-level")


def model_of(kind: str) -> Model:
    return tiny_model("llama") if kind == "byte-level" else model_with(kind)


def with_post_processor(post_processor: object) -> Model:
    """A tiny Llama whose byte-level tokenizer ends in `post_processor`."""
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = post_processor
    return wrap_in_memory(families.build("llama"), tokenizer)


def with_ends(single: str) -> Model:
    specials = [(token, id) for id, token in enumerate(families.SPECIAL_TOKENS)]
    return with_post_processor(processors.TemplateProcessing(single=single, special_tokens=specials))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["the cat of Spain", "1135 is", "hello<user>cat", "cathedral of Syria\n", " the  cat "]
)
def test_spans_of_every_kind_of_tokenizer_pass_the_check(kind: str, text: str) -> None:
    tokenized = tokenize(model_of(kind), text)
    verify_spans(model_of(kind), tokenized)
    assert all(0 <= start <= end <= len(text) for start, end in tokenized.spans)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_spans_of_byte_level_tokens_hold_for_any_text(text: str) -> None:
    tokenized = tokenize(tiny_model("llama"), text)
    verify_spans(tiny_model("llama"), tokenized)
    covered = {i for start, end in tokenized.spans for i in range(start, end)}
    assert covered == set(range(len(text))), "every character is covered"


@pytest.mark.parametrize("shift", [1, 2, -1])
def test_offsets_that_lie_are_found_out(llama: Model, shift: int) -> None:
    tokenized = tokenize(llama, "the cat of Spain is hello")
    lying = tuple((max(0, start + shift), end + shift) for start, end in tokenized.spans)
    wrong = Tokenized(
        tokenized.text, tokenized.ids, lying, tokenized.tokens, tokenized.special, has_bos=tokenized.has_bos
    )
    with pytest.raises(errors.PositionError, match="offsets do not fit its ids at position") as caught:
        verify_spans(llama, wrong)
    assert "> " in str(caught.value), "the table marks the token"
    assert any("offsets do not fit" in caution for caution in cautions(llama, wrong))


def test_offsets_out_of_order_are_found_out(llama: Model) -> None:
    tokenized = tokenize(llama, "cat cat cat")
    spans = (tokenized.spans[0], tokenized.spans[2], tokenized.spans[1])
    wrong = Tokenized(tokenized.text, tokenized.ids, spans, tokenized.tokens, tokenized.special, has_bos=False)
    with pytest.raises(errors.PositionError, match="position 2"):
        verify_spans(llama, wrong)


def test_a_token_for_the_unknown_is_text_and_no_special_token() -> None:
    tokenized = tokenize(model_with("metaspace"), "the é<eos>")
    unknown = tokenized.spans.index((4, 5))
    assert tokenized.ids[unknown] == model_with("metaspace").tokenizer.unk_token_id
    assert not tokenized.special[unknown]
    assert tokenized.special[-1]


def test_the_space_put_before_a_text_is_not_shown_as_its_first_letter() -> None:
    tokenized = tokenize(model_with("metaspace"), "1 is")
    assert tokenized.tokens == ("▁", "1", " is")
    assert not any("one character is split" in caution for caution in cautions(model_with("metaspace"), tokenized))


def test_bos_is_as_shipped_unless_overridden() -> None:
    plain, with_bos = tiny_model("llama"), tiny_model("llama", add_bos=True)
    for model in (plain, with_bos):
        always, never = tokenize(model, "the cat", bos="always"), tokenize(model, "the cat", bos="never")
        assert always.ids == (families.BOS_ID, *never.ids)
        assert always.spans == ((0, 0), *never.spans)
        assert (always.has_bos, never.has_bos) == (True, False)
        assert tokenize(model, "the cat") == (always if model is with_bos else never)


def test_a_bos_that_the_text_spells_out_is_neither_doubled_nor_dropped(llama: Model) -> None:
    for bos in ("always", "never", "auto"):
        tokenized = tokenize(llama, "<bos>cat", bos=bos)
        assert tokenized.ids.count(families.BOS_ID) == 1
        assert tokenized.spans[0] == (0, 5)
        assert tokenized.has_bos


def test_a_second_bos_is_kept_and_warned_of() -> None:
    model = tiny_model("llama", add_bos=True)
    tokenized = tokenize(model, "<bos>cat")
    assert tokenized.ids.count(families.BOS_ID) == 2
    assert any("special tokens inside the text, at positions 1" in caution for caution in cautions(model, tokenized))
    assert tokenize(model, "<bos>cat", bos="never").ids.count(families.BOS_ID) == 1


def test_bos_always_without_a_bos_token_is_an_option_error() -> None:
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.bos_token = None
    with pytest.raises(errors.OptionError, match="has no BOS token"):
        tokenize(wrap_in_memory(families.build("llama"), tokenizer), "cat", bos="always")


@pytest.mark.parametrize("single", ["$A <eos>", "<bos> $A <eos>", "<bos> $A <pad>", "$A <assistant> <eos>"])
def test_what_a_tokenizer_appends_is_taken_off(single: str) -> None:
    model = with_ends(single)
    tokenized = tokenize(model, "the cat")
    bare = tokenize(tiny_model("llama"), "the cat").ids
    assert tokenized.ids == ((families.BOS_ID, *bare) if "<bos>" in single else bare)


def test_an_eos_that_the_text_spells_out_stays() -> None:
    tokenized = tokenize(with_ends("$A <eos>"), "cat<eos>")
    assert tokenized.ids[-1] == families.EOS_ID
    assert tokenized.special == (False, True)


def test_a_bos_with_the_id_of_an_eos_is_not_taken_for_one() -> None:
    """OPT begins a text with its EOS."""
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.bos_token = "<eos>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", families.EOS_ID)]
    )
    model = wrap_in_memory(families.build("llama"), tokenizer)
    assert tokenize(model, "cat").ids[0] == families.EOS_ID
    assert tokenize(model, "").ids == (families.EOS_ID,)


def test_an_empty_text_has_no_tokens_and_no_crash(llama: Model) -> None:
    tokenized = tokenize(llama, "")
    assert (len(tokenized), tokenized.has_bos) == (0, False)
    assert tokenized.table().splitlines() == ["  position     id  token"]


@pytest.mark.parametrize("text", ["a \ud800", "\udcff"])
def test_a_lone_surrogate_is_an_option_error_and_no_crash(llama: Model, text: str) -> None:
    with pytest.raises(errors.OptionError, match="not UTF-8"):
        tokenize(llama, text)
    with pytest.raises(errors.OptionError, match="not UTF-8"):
        tokenize_rendered(llama, text)


def test_cautions_say_where_a_character_is_split(llama: Model) -> None:
    tokenized = tokenize(llama, "x é", bos="always")
    split = [i for i, span in enumerate(tokenized.spans) if span == (2, 3)]
    assert len(split) == 2
    assert cautions(llama, tokenized) == [
        f"one character is split over tokens at positions {split[0]}; none holds it alone"
    ]


def test_a_model_that_needs_bos_is_warned_of() -> None:
    model = tiny_model("gemma3")
    assert any("bos='always'" in caution for caution in cautions(model, tokenize(model, "cat")))
    assert cautions(model, tokenize(model, "cat", bos="always")) == []


def test_the_table_has_a_line_per_token_and_marks_the_asked(llama: Model) -> None:
    lines = tokenize(llama, "the cat\n").table([1]).splitlines()
    assert len(lines) == 1 + 3
    assert [line[0] for line in lines[1:]] == [" ", ">", " "]
    assert lines[3].endswith(r"'\n'"), "a newline is shown, not printed"


def test_parts_of_a_character_are_shown_as_vocabulary_entries(llama: Model) -> None:
    tokens = tokenize(llama, "😀").tokens
    assert len(tokens) == 4
    assert "😀" not in tokens


def test_text_until_a_part_of_a_character_holds_all_of_it(llama: Model) -> None:
    tokenized = tokenize(llama, "x 😀 cat")
    first_part = tokenized.spans.index((2, 3))
    assert tokenized.text_until(first_part) == "x 😀"


def test_chat_rendering_has_the_templates_special_tokens_once() -> None:
    model = tiny_model("llama", add_bos=True)
    text = render_chat(model, "the cat", "hello")
    assert text == "<bos><user>the cat<eos><assistant>hello"
    tokenized = tokenize_rendered(model, text)
    assert [i for i, special in enumerate(tokenized.special) if special] == [0, 1, 4, 5]
    assert tokenized.ids.count(families.BOS_ID) == 1


def test_chat_without_a_template_is_a_prompt_error() -> None:
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(errors.PromptError, match="has no chat template"):
        render_chat(wrap_in_memory(families.build("llama"), tokenizer), "cat", "")


class NoOffsets(transformers.PythonBackend):
    """A tokenizer in Python, which knows no offsets."""

    vocab_size = 300

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + i): i for i in range(26)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token) % 300

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(errors.UnsupportedModelError, match="no character offsets"):
        wrap_in_memory(families.build("llama"), NoOffsets())


def test_a_tokenizer_that_lower_cases_still_fits_its_text() -> None:
    model = model_with("wordpiece")
    tokenized = tokenize(model, "The CAT")
    assert tokenized.text == "The CAT"
    verify_spans(model, tokenized)


def test_shipped_tokenizers_know_their_special_tokens() -> None:
    tokenizer = shipped(MAKERS["gemma"]())
    assert [tokenizer.convert_tokens_to_ids(token) for token in families.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


FORMS = {"NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC, "NFKD": normalizers.NFKD}
# "▁", accents, and characters that are several in some form.
REWRITTEN = (
    "the cat▁is ok",
    "▁ the cat",
    "café cat",
    unicodedata.normalize("NFD", "café cat"),
    "… cat",
    "½ ﬁ ⅷ cat",
    "\uff13 cat",
)


@pytest.mark.parametrize("form", ["as shipped", "accents left out", *FORMS])
@pytest.mark.parametrize("kind", KINDS)
def test_what_normalizers_rewrite_fits_its_spans(kind: str, form: str) -> None:
    tokenizer = copy.deepcopy(model_of(kind).tokenizer)
    backend = tokenizer.backend_tokenizer
    first = {"as shipped": [], "accents left out": [normalizers.NFD(), normalizers.StripAccents()]}
    made = first[form] if form in first else [FORMS[form]()]
    backend.normalizer = normalizers.Sequence([*made, *([backend.normalizer] if backend.normalizer else [])])
    model = wrap_in_memory(families.build("llama"), tokenizer)
    for text in REWRITTEN:
        tokenized = tokenize(model, text)
        verify_spans(model, tokenized)
        last = resolve_positions(model, tokenized, "cat" if "▁is" not in text else "ok")
        assert last == (len(tokenized) - 1,), text


@pytest.mark.parametrize("covered", ["the cat", "ca", "of", "é", "catcat", "x"])
def test_a_token_stands_for_no_other_text(covered: str) -> None:
    assert _stands_for(" cat", " Cat")
    assert not _stands_for(" cat", covered)
    assert not _stands_for("ca", "café")
    assert not _stands_for("", covered)


def test_two_bos_are_told() -> None:
    model = tiny_model("llama", add_bos=True)
    for text, where in (("<bos>cat", 1), ("the cat <bos>cat", 4)):
        (told,) = (caution for caution in cautions(model, tokenize(model, text)) if "two BOS" in caution)
        assert f"<bos> at positions 0 and {where}" in told
    assert not any("two BOS" in caution for caution in cautions(model, tokenize(model, "<bos>cat", bos="never")))
    chat = (families.BOS_ID, 9, families.BOS_ID, 9)
    assert bos_caution(model, chat, "hello", "it") is None, "a template may part turns by it"
    assert bos_caution(model, chat, "hello<bos>", "it") is not None
    assert bos_caution(model, (families.BOS_ID, families.BOS_ID, 9), "hello", "it") is not None
