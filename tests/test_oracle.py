"""The oracle obeys docs/semantics.md on every family, and the families are worth comparing on."""

import inspect
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import EOS, FAMILIES, LEARNED_POSITIONS, SPECIAL_TOKENS, build, n_layers_of, tiny_tokenizer
from oracle import NEAR_TIE, Run, Source, Target, blocks_of, eos_ids_of, hook_generate, patchscope, readout, states

SOURCE = tuple(tiny_tokenizer()("hello the capital of Spain").input_ids)
PROMPT = tuple(tiny_tokenizer()("cat -> cat; 1135 -> 1135; hello -> hello; ? ->").input_ids)
PLACEHOLDER = len(PROMPT) - 2
N_NEW = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small run faster on one thread, and much faster where the cores are shared."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_family_builds_and_is_finite(family: str) -> None:
    model = build(family)
    logits = model(torch.tensor([PROMPT])).logits
    assert not model.training
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std() > 0.5
    assert len(blocks_of(model)) == n_layers_of(family)


@every_family
def test_no_parameter_is_left_at_its_default(family: str) -> None:
    for name, parameter in build(family).named_parameters():
        assert not (parameter == 0).any(), name
        assert not (parameter == 1).any(), name


@every_family
def test_same_seed_same_model_and_other_seed_another(family: str) -> None:
    first, again, other = (dict(build.__wrapped__(family, seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@every_family
def test_capture_is_what_hugging_face_reports_except_the_last(family: str) -> None:
    model = build(family)
    ours = states(model, PROMPT)
    theirs = model(torch.tensor([PROMPT]), output_hidden_states=True, use_cache=False).hidden_states
    assert len(ours) == n_layers_of(family) + 1
    for layer, state in enumerate(theirs[:-1]):
        torch.testing.assert_close(ours[layer], state[0], rtol=0, atol=1e-5, msg=f"layer {layer}")


@every_family
def test_the_last_layer_reads_out_as_the_logits(family: str) -> None:
    model = build(family)
    logits = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(readout(model, states(model, PROMPT)[-1]), logits, rtol=0, atol=1e-5)


@every_family
def test_most_writes_change_the_tokens(family: str) -> None:
    model, n_layers = build(family), n_layers_of(family)
    plain = _into(model, None, 0)
    runs = [_into(model, Source(SOURCE, 4, ls), lt) for ls in range(n_layers + 1) for lt in range(n_layers)]
    assert sum(run.token_ids != plain.token_ids for run in runs) > len(runs) / 2
    assert sum(gap < NEAR_TIE for run in runs for gap in run.gaps) < 0.01 * N_NEW * len(runs)


@every_family
def test_a_write_of_its_own_state_changes_nothing(family: str) -> None:
    model = build(family)
    own, plain = states(model, PROMPT)[:, PLACEHOLDER], _into(model, None, 0)
    for layer, state in enumerate(own):
        run = _into(model, state, layer)
        torch.testing.assert_close(run.first_logits, plain.first_logits, rtol=0, atol=1e-5, msg=f"layer {layer}")
        assert plain.agrees_with(run.token_ids)


@every_family
def test_a_write_after_the_last_block_is_inert_unless_it_is_read(family: str) -> None:
    model, n_layers = build(family), n_layers_of(family)
    plain = _into(model, None, 0)
    source = Source(SOURCE, 4, 1)
    torch.testing.assert_close(_into(model, source, n_layers).logits, plain.logits, rtol=0, atol=0)
    read = patchscope(model, source, Target(PROMPT, [len(PROMPT) - 1], n_layers), max_new_tokens=1)
    expected = readout(model, states(model, SOURCE)[1, 4])
    torch.testing.assert_close(read.first_logits, expected, rtol=0, atol=1e-5)


@every_family
def test_recomputing_equals_one_write_in_a_cached_prefill(family: str) -> None:
    model, n_layers = build(family), n_layers_of(family)
    pairs = [(ls, lt) for ls in range(n_layers + 1) for lt in range(n_layers + 1) if (ls + lt) % 3 == 0]
    for ls, lt in pairs:
        source, target = Source(SOURCE, 4, ls), Target(PROMPT, [PLACEHOLDER], lt)
        run = patchscope(model, source, target, max_new_tokens=N_NEW)
        assert run.agrees_with(hook_generate(model, source, target, max_new_tokens=N_NEW)), (ls, lt)


@every_family
def test_several_placeholders_and_given_vectors(family: str) -> None:
    model = build(family)
    n_layers, d_model = n_layers_of(family), states(model, PROMPT).shape[-1]
    vectors = torch.randn(2, d_model, generator=torch.Generator().manual_seed(0))
    for what in (vectors, vectors[0], torch.zeros(d_model), Source(SOURCE, 4, 1)):
        target = Target(PROMPT, [PLACEHOLDER - 2, PLACEHOLDER], n_layers - 1)
        run = patchscope(model, what, target, max_new_tokens=N_NEW)
        assert run.agrees_with(hook_generate(model, what, target, max_new_tokens=N_NEW))


@every_family
def test_a_prompt_of_one_token_is_written_to_in_prefill_only(family: str) -> None:
    model, target = build(family), Target(PROMPT[:1], [0], 1)
    run = patchscope(model, Source(SOURCE, 4, 2), target, max_new_tokens=N_NEW)
    assert run.agrees_with(hook_generate(model, Source(SOURCE, 4, 2), target, max_new_tokens=N_NEW))


@every_family
def test_layer_0_to_layer_0_is_another_token(family: str) -> None:
    """With learned positions a state carries its own, so the source must stand where the placeholder does."""
    model, token = build(family), SOURCE[-1]
    swapped = _replaced(PROMPT, PLACEHOLDER, token)
    expected = patchscope(model, None, Target(swapped, [], 0), max_new_tokens=N_NEW)
    alone = _into(model, Source([token], 0, 0), 0)
    in_place = _into(model, Source(swapped, PLACEHOLDER, 0), 0)
    torch.testing.assert_close(in_place.first_logits, expected.first_logits, rtol=0, atol=1e-5)
    if family in LEARNED_POSITIONS:
        assert (alone.first_logits - expected.first_logits).abs().max() > 1e-2
    else:
        torch.testing.assert_close(alone.first_logits, expected.first_logits, rtol=0, atol=1e-5)
        assert expected.agrees_with(alone.token_ids)


@every_family
def test_left_padding_with_mask_and_positions_gives_the_unpadded_logits(family: str) -> None:
    """BLOOM alone takes no position ids: its ALiBi counts from the mask."""
    model, rows = build(family), [PROMPT, SOURCE, PROMPT[:1]]
    ids, mask = _left_padded(rows)
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    assert takes_positions == (family != "bloom")
    batch = model(input_ids=ids, attention_mask=mask, **(positions if takes_positions else {})).logits
    for row, tokens in zip(batch, rows, strict=True):
        alone = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(row[-len(tokens) :], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", EOS)
def test_eos_is_met_in_some_runs_and_ends_them(family: str) -> None:
    model, n_layers = build(family), n_layers_of(family)
    eos_ids, reasons = eos_ids_of(model), set()
    for ls, lt in ((ls, lt) for ls in range(n_layers + 1) for lt in range(n_layers)):
        run = patchscope(model, Source(SOURCE, 4, ls), Target(PROMPT, [PLACEHOLDER], lt), max_new_tokens=12)
        reasons.add(run.finish_reason)
        assert (run.token_ids[-1] in eos_ids) == (run.finish_reason == "eos")
        assert not eos_ids & set(run.token_ids[:-1])
        if reasons == {"eos", "length"}:
            return
    pytest.fail(f"{family} only ever ended by {reasons}")


def test_a_near_tie_ends_the_comparison() -> None:
    run = Run((7, 8, 9), (1.0, NEAR_TIE / 2, 1.0), torch.zeros(3, 10), "length")
    assert run.n_comparable == 1
    assert run.agrees_with((7, 5))
    assert not run.agrees_with((6, 8, 9))
    assert not Run((7, 8), (1.0, 1.0), torch.zeros(2, 10), "eos").agrees_with((7, 8, 9))


@pytest.mark.parametrize("text", ["x", " x", "cat", " cat", " Spain", "Wales", " ?", ";", " ->", "!;", "1135"])
def test_words_of_one_token(text: str) -> None:
    assert len(tiny_tokenizer()(text).input_ids) == 1


def test_tokenizer_has_offsets_splits_rare_words_and_round_trips() -> None:
    tokenizer, text = tiny_tokenizer(), "Zimbabwe é 日本 x!;"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.is_fast
    assert len(tokenizer(" Zimbabwe").input_ids) > 3
    assert tokenizer.decode(encoded.input_ids) == text
    assert encoded.offset_mapping[-1] == (len(text) - 2, len(text))


def test_tokenizer_with_bos_and_chat() -> None:
    plain, with_bos = tiny_tokenizer(), tiny_tokenizer(add_bos=True)
    assert with_bos("cat x").input_ids == [plain.bos_token_id, *plain("cat x").input_ids]
    assert with_bos("cat x", return_offsets_mapping=True).offset_mapping == [(0, 0), (0, 3), (3, 5)]
    chat = [{"role": "user", "content": "x"}]
    assert plain.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "<bos><user>x<eos><assistant>"
    assert plain.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert plain.decode(plain("<user>cat<assistant>").input_ids, skip_special_tokens=True) == "cat"


def _into(model: PreTrainedModel, what: Source | Tensor | None, layer: int) -> Run:
    return patchscope(model, what, Target(PROMPT, [PLACEHOLDER], layer), max_new_tokens=N_NEW)


def _replaced(ids: Sequence[int], position: int, token: int) -> tuple[int, ...]:
    return (*ids[:position], token, *ids[position + 1 :])


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask; the padding is an ordinary token, so that one that leaks is seen."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[9] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
