"""`{}` → the positions of exactly one token each, or an error (rule 7)."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from conftest import tiny_model
from odd_tokenizers import MAKERS, model_with
from patchscopes import errors
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import Target, resolve_target
from patchscopes.prompts.placeholders import N_PROBES, PROBES, fill
from patchscopes.spec import InspectionPrompt


def target(model: Model, text: str, **options: object) -> Target:
    return resolve_target(model, InspectionPrompt(text, **options))  # type: ignore[arg-type]


def shown(found: Target) -> list[str]:
    return [found.tokenized.tokens[position] for position in found.positions]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("text", "n"), [("the capital of {} is", 1), ("{} is the cat", 1), ("cat {}", 1), ("{} {} of {}", 3), ("{}", 1)]
)
def test_each_mark_is_one_token_on_every_kind_of_tokenizer(kind: str, text: str, n: int) -> None:
    model = model_with(kind)
    found = target(model, text)
    assert len(found.positions) == n
    assert {token.strip() for token in shown(found)} == {"x"}
    other = fill(model, found.prompt, "the")
    changed = [i for i, (a, b) in enumerate(zip(found.tokenized.ids, other.ids, strict=True)) if a != b]
    assert tuple(changed) == found.positions, "another word there changes those ids alone"


def test_spaces_trimmed_off_spans_do_not_hide_that_a_probe_splits() -> None:
    """StarCoder and SmolLM keep digits apart from their space; where spans leave that space out, " 1" looks whole."""
    model = model_with("trimmed")
    assert [model.tokenizer.convert_ids_to_tokens(i) for i in fill(model, InspectionPrompt("cat {}"), "1").ids] == [
        "cat",
        "Ġ",
        "1",
    ]
    assert target(model, "cat {}").positions == (1,)


def test_the_words_own_token_is_proved_by_others(llama: Model) -> None:
    """Probes that split or equal the placeholder prove nothing and are passed over."""
    assert target(llama, "the capital of {} is", placeholder="cat").positions == (3,)
    proving = [w for w in PROBES if len(llama.tokenizer(f" {w}")["input_ids"]) == 1]
    assert 0 < len(proving) < len(PROBES)
    assert "a" not in proving[:1], "the first probe of all is among those passed over here"


def test_no_word_to_prove_it_with_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, llama: Model) -> None:
    monkeypatch.setattr("patchscopes.prompts.placeholders.PROBES", ("x", "qvz"))
    with pytest.raises(errors.PlaceholderError, match="no other one-token word was found"):
        target(llama, "the capital of {} is")


def test_as_many_probes_as_said_are_enough(monkeypatch: pytest.MonkeyPatch, llama: Model) -> None:
    asked: list[str] = []

    def counting(model: Model, prompt: InspectionPrompt, word: str, **options: object) -> object:
        asked.append(word)
        return fill(model, prompt, word, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("patchscopes.prompts.placeholders.fill", counting)
    target(llama, "{}\n")
    proving = [w for w in asked[1:] if len(llama.tokenizer(w)["input_ids"]) == 1]
    assert len(proving) == N_PROBES


@pytest.mark.parametrize(
    ("text", "placeholder", "reason"),
    [
        ("cat {};", "!", "merges with its neighbour into the token ' !;'|'!;'"),
        ("x{};", "!", "merges|takes"),
        ("cat !{}", ";", "merges with its neighbour"),
        ("the capital of {} is", "qvz", "takes \\d tokens"),
        ("the capital of {} is", "Madrid", "takes \\d tokens"),
        ("the capital of {} is", "😀", "takes 4 tokens"),
        ("hel{}", "lo", "merges|takes"),
    ],
)
def test_merging_and_splitting_placeholders(llama: Model, text: str, placeholder: str, reason: str) -> None:
    with pytest.raises(errors.PlaceholderError, match=reason) as caught:
        target(llama, text, placeholder=placeholder)
    assert "\n>" in str(caught.value), "the table marks the tokens"


def test_one_bad_mark_among_good_ones_is_found(llama: Model) -> None:
    with pytest.raises(errors.PlaceholderError, match="merges"):
        target(llama, "cat {} is {};", placeholder="!")


def test_a_word_that_changes_what_stands_before_it_is_refused() -> None:
    """With BPE over whole texts a neighbour's split may hang on the placeholder, though the placeholder is whole."""
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.add_tokens(["of x"])
    model = wrap_in_memory(families.build("llama"), tokenizer)
    with pytest.raises(errors.PlaceholderError, match="merges with its neighbour into the token 'of x'"):
        target(model, "capital of {} is")
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.add_tokens(["of the"])
    model = wrap_in_memory(families.build("llama"), tokenizer)
    with pytest.raises(errors.PlaceholderError, match=r"is tied to its neighbours .* with 'the' in its stead"):
        target(model, "capital of {} is")


def test_marks_that_run_together_say_nothing_of_words() -> None:
    """ "?" in the stead of "x" makes "??" one token in some vocabularies; words in its stead change nothing else."""
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.add_tokens(["??"])
    model = wrap_in_memory(families.build("llama"), tokenizer)
    found = target(model, "What is {}?")
    assert found.tokenized.tokens[found.positions[0] + 1] == "?"


@pytest.mark.parametrize("placeholder", ["", " ", " x", "x ", "{}", "a{}", "\n"])
def test_what_is_no_word_is_no_placeholder(llama: Model, placeholder: str) -> None:
    with pytest.raises(errors.OptionError, match="is not a word"):
        target(llama, "cat {}", placeholder=placeholder)


@pytest.mark.parametrize("options", [{"placeholder": "\ud800"}, {"reply": "\ud800"}])
def test_lone_surrogates_are_an_option_error(llama: Model, options: dict[str, str]) -> None:
    with pytest.raises(errors.OptionError, match="not UTF-8"):
        target(llama, "cat {}", **options)


@pytest.mark.parametrize("text", ["", "the capital", "{ }", "{x}", "}{"])
def test_no_mark_is_an_error_with_an_example(llama: Model, text: str) -> None:
    with pytest.raises(errors.PlaceholderError, match=r'occurs 0 times in .*e.g. "The capital of \{\}"'):
        target(llama, text)


def test_a_mark_in_braces_is_the_inner_one(llama: Model) -> None:
    found = target(llama, "cat {{}} is")
    assert found.tokenized.text == "cat {x} is"
    assert shown(found) == ["x"]


def test_the_given_placeholder_wins_over_the_prompts_own(llama: Model) -> None:
    assert target(llama, "cat {}").placeholder == "x"
    assert target(llama, "cat {}", placeholder="?").placeholder == "?"


def test_placeholders_that_occur_elsewhere_in_the_prompt_are_left_alone(llama: Model) -> None:
    found = target(llama, "x of x {} x")
    assert found.positions == (3,)


def test_bos_shifts_the_positions() -> None:
    model, prompt = tiny_model("llama"), InspectionPrompt("{} is {}")
    without, with_bos = (resolve_target(model, prompt, bos=bos) for bos in ("never", "always"))
    assert without.positions == (0, 2)
    assert with_bos.positions == (1, 3)


def test_marks_inside_a_chat() -> None:
    model = tiny_model("llama")
    found = target(model, "{} {}\nthe {}", chat=True, reply="hello")
    assert found.tokenized.text == "<bos><user>x x\nthe x<eos><assistant>hello"
    assert shown(found) == ["x", " x", " x"]
    assert found.positions[0] == 2, "after <bos> and <user>"


def test_a_chat_template_that_changes_the_text_is_refused() -> None:
    for change in ("{{ message['content'] | upper }}", "{{ message['content'] }} or {}", "{} {{ message['content'] }}"):
        tokenizer = copy.deepcopy(families.tiny_tokenizer())
        tokenizer.chat_template = "{% for message in messages %}" + change + "{% endfor %}"
        model = wrap_in_memory(families.build("llama"), tokenizer)
        with pytest.raises(errors.PlaceholderError, match="chat template of llama changes the text"):
            target(model, "cat {}", chat=True)


def test_a_chat_template_that_strips_the_content_is_followed() -> None:
    tokenizer = copy.deepcopy(families.tiny_tokenizer())
    tokenizer.chat_template = "<user>{{ messages[0]['content'] | trim }}<assistant>"
    model = wrap_in_memory(families.build("llama"), tokenizer)
    found = target(model, "  cat {}  ", chat=True, reply="the")
    assert found.tokenized.text == "<user>cat x<assistant>the"
    assert shown(found) == [" x"]


@settings(deadline=None, max_examples=60)
@given(
    before=st.lists(st.sampled_from(["cat", "of", "é", "x", "!;", "\n", "1135", "<eos>"]), max_size=3),
    after=st.lists(st.sampled_from(["cat", ";", "😀", "is", "{}", "->"]), max_size=3),
)
def test_a_word_set_apart_by_spaces_is_always_found(before: list[str], after: list[str]) -> None:
    model = tiny_model("llama")
    text = " ".join([*before, "{}", *after])
    found = target(model, text)
    assert len(found.positions) == text.count("{}")
    assert {token.strip() for token in shown(found)} == {"x"}
    assert found.tokenized.text == text.replace("{}", "x")
