"""The walk through one item: contrasts beside ln p computed plainly, and cells of tables that Markdown reads."""

import pytest
import torch

import families
from patchscopes.engine import Engine
from patchscopes.resolve import resolve
from patchscopes.spec import Decoding, InspectionPrompt, Source, Sweep
from patchscopes.studies.setup import Setup, Stage
from patchscopes.studies.walk import Word, contrasts, sentence, table_of
from study_cases import long_hf, long_model


def plain_logprobs(cell, written: tuple[int, ...], state: torch.Tensor | None) -> list[float]:
    """ln p of each token of `written` behind the prompt, by a forward hook on transformers' own model."""
    model, found = long_hf(), []

    def write(_module, args):
        hidden = args[0].clone()
        hidden[:, cell.write.positions[0]] = state
        return (hidden, *args[1:])

    blocks = model.model.layers
    hook = blocks[cell.write.site.layer].register_forward_pre_hook(write) if state is not None else None
    for k, token in enumerate(written):
        logits = model(torch.tensor([[*cell.target_ids, *written[:k]]])).logits[0, -1]
        found.append(float(torch.log_softmax(logits, -1)[token]))
    if hook:
        hook.remove()
    return found


@torch.no_grad()
def test_contrasts_are_ln_p_with_the_write_minus_without() -> None:
    model = long_model()
    setup = Setup.of(model, {"runner": Engine})
    prompt = InspectionPrompt("the capital of {} is")
    sweep = Sweep((Source("go to Spain", at="Spain"),), (prompt,), (1, 5), target_layers=(2,), decoding=Decoding(6))
    requests = resolve(model, sweep).requests
    texts = [row.token_ids or () for row in setup.run(Stage("s", sweep))]
    found = contrasts(setup, requests, texts)
    assert len(found) == 2
    for request, ids, words in zip(requests, texts, found, strict=True):
        (vector,) = request.cell.write.vectors
        states = long_hf()(torch.tensor([vector.ids]), output_hidden_states=True).hidden_states
        state = states[vector.layer][0, vector.position]
        patched = plain_logprobs(request.cell, ids, state)
        unpatched = plain_logprobs(request.cell, ids, None)
        expected = [a - b for a, b in zip(patched, unpatched, strict=True)]
        assert [word.contrast for word in words] == pytest.approx(expected, abs=2e-3)
        assert max(map(abs, expected)) > 0.1
        assert [word.text for word in words] == [families.tiny_tokenizer().decode([token]) for token in ids]


def test_a_text_is_one_line_without_markdown_of_its_own() -> None:
    assert sentence(" a | b\n\n*c* <d> ") == "a \\| b \\*c\\* \\<d>"
    assert sentence(" \n") == "(nothing)"


def test_the_table_shows_the_strongest_words_in_the_order_of_the_text() -> None:
    words = [Word(" low", -0.5), Word(" A", 2.0), Word("\n", 0.3), Word(" |", 3.0), Word(" z", 0.1), Word("", 1.0)]
    page = table_of(title="T", opening="O", rows=[("3", "text", "–", words)], controls={"zero": "nothing"}, closing="C")
    assert "| 3 | text | – | “A” +2.0, “↵” +0.3, “\\|” +3.0, “(end)” +1.0 |" in page.splitlines()
    assert "- zero: nothing" in page.splitlines()
    assert "−0.5" in table_of(title="T", opening="", rows=[("3", "", "", words[:1])], controls={}, closing="")
