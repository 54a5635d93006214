"""One test or more for each rule of docs/semantics.md, named by its number. Rule 9 is all of test_engine.py; rules 14,
17, 19, 20 and 23 belong to the studies.
"""

import copy
import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers

import families
import oracle
import patchscopes as ps
from conftest import tiny_model
from patchscopes import errors, hooks
from patchscopes.engine import Engine
from patchscopes.hooks import LayerWrite, Places, capture, patch
from patchscopes.models import Model, wrap_in_memory
from patchscopes.models.architectures import refuse_unsupported, rope_switch
from patchscopes.plan import Budget
from patchscopes.prompts import resolve_positions, resolve_target, tokenize
from patchscopes.reference import Reference
from patchscopes.resolve import CONTROLS
from patchscopes.run import run_cells
from patchscopes.spec import InspectionPrompt, Neutral, Noise, Row, Source, State
from patchscopes.vectors import make_vectors
from patchscopes.yardstick import measure

IDS = (17, 33, 60, 21, 45, 70, 19)
EVERYWHERE = Places((0,) * len(IDS), tuple(range(len(IDS))))
SENTENCE = "the cat of Spain is hello"
PROMPT = "the capital of {} is"
AMPLE = Budget(2**32)


def tensor(ids: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([ids])


def captured(model: Model) -> torch.Tensor:
    with capture(model, dict.fromkeys(range(model.n_layers + 1), EVERYWHERE)) as states:
        model.all_logits(tensor(IDS))
    return torch.stack([states[layer] for layer in range(model.n_layers + 1)])


def inspect(model: Model, *arguments: object, **options: object) -> ps.Results:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        return ps.inspect(model, *arguments, **{"prompt": PROMPT, "max_new_tokens": 3, **options})  # type: ignore[arg-type]


def cells(results: ps.Results) -> list[Row]:
    return [row for row in results if row.control is None]


def control(results: ps.Results, name: str) -> list[Row]:
    return [row for row in results if row.control == name]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_rule_1_and_2_layers_are_the_stream_after_that_many_blocks(family: str) -> None:
    model = tiny_model(family)
    states = captured(model)
    assert torch.allclose(states, oracle.states(model.hf, IDS), atol=1e-5)
    with torch.no_grad():
        hidden = model.hf(tensor(IDS), output_hidden_states=True).hidden_states
    for layer in range(model.n_layers):
        assert torch.allclose(states[layer], hidden[layer][0], atol=1e-5)
    has_norm = family != "opt-post-norm"
    if states[-1].shape == hidden[-1][0].shape:
        assert torch.allclose(states[-1], hidden[-1][0], atol=1e-3) != has_norm, "HF's last entry is normed, ours not"


@pytest.mark.parametrize("family", ["granite", "bloom", "gpt2", "opt-projected"])
def test_rule_1_layer_0_is_what_enters_block_1_not_the_embedding(family: str) -> None:
    model = tiny_model(family)
    embedded = model.hf.get_input_embeddings()(tensor(IDS))[0]
    first = captured(model)[0]
    assert first.shape != embedded.shape or not torch.allclose(first, embedded, atol=1e-2)


def test_rule_3_blocks_return_tensors_or_tuples() -> None:
    kinds = set()
    for family in families.FAMILIES:
        model = tiny_model(family)
        handle = model.blocks[0].register_forward_hook(lambda _, __, output: kinds.add(isinstance(output, tuple)))
        model.hf(input_ids=tensor(IDS))
        handle.remove()
    assert kinds == {True, False}, "both kinds exist in this version, so rule 1's test covers both"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rule_4_replace_writes_the_vector_in_the_blocks_dtype(dtype: torch.dtype) -> None:
    model = wrap_in_memory(copy.deepcopy(families.build("llama")).to(dtype), families.tiny_tokenizer())
    vector = torch.linspace(-1, 1, model.d_model)
    with capture(model, {2: EVERYWHERE}) as before:
        model.all_logits(tensor(IDS))
    with patch(model, [LayerWrite(2, Places((0,), (3,)), vector[None])]), capture(model, {2: EVERYWHERE}) as after:
        model.all_logits(tensor(IDS))
    assert after[2].dtype == dtype
    assert torch.equal(after[2][3], vector.to(dtype))
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(after[2][others], before[2][others]), "no other position is ever written"


def test_rule_5_the_write_is_made_where_the_placeholder_runs_and_never_again(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suffix of one token is written too, and decoding steps, one token long as well, are not."""
    target = resolve_target(llama, InspectionPrompt("cat is {}"))
    assert target.positions[0] == len(target.tokenized) - 1
    results = inspect(llama, SENTENCE, prompt="cat is {}", controls=("unpatched", "zero"))
    assert len({row.token_ids for row in results}) > 3
    seen: list[str] = []
    monkeypatch.setattr(hooks, "_read", partial(noted, seen, "read", hooks._read))
    monkeypatch.setattr(hooks, "_begin", partial(noted, seen, "start", hooks._begin))
    monkeypatch.setattr(hooks, "_overwrite", partial(noted, seen, "write", hooks._overwrite))
    steps: list[int] = []
    forward = Model.forward_of
    monkeypatch.setattr(Model, "forward_of", lambda *args: (steps.append(len(seen)), forward(*args))[1])
    inspect(llama, SENTENCE, prompt="cat is {}", source_layers=2, max_new_tokens=4, controls=())
    assert seen == ["read", "read"], "of the source, and of the prompt as it is; rows start above"
    assert steps == [0, 1, 2, 2, 2, 2], "a step of one token reads and writes nothing"


def noted(seen: list[str], name: str, act: Callable[..., Any], *args: Any) -> Any:
    seen.append(name)
    return act(*args)


@pytest.mark.parametrize(
    ("at", "positions"),
    [
        ("last", (5,)),
        ("all", (0, 1, 2, 3, 4, 5)),
        (0, (0,)),
        (-1, (5,)),
        ("-2", (4,)),
        ("Spain", (3,)),
        ("of Spain", (3,)),
        ("span:of Spain", (2, 3)),
        ("re:S[a-z]+", (3,)),
        ("text:cat", (1,)),
    ],
)
def test_rule_6_positions(llama: Model, at: str | int, positions: tuple[int, ...]) -> None:
    assert resolve_positions(llama, tokenize(llama, SENTENCE), at) == positions


def test_rule_6_position_0_without_bos_is_a_sink() -> None:
    with pytest.warns(ps.PatchscopesWarning, match="attention sink"):
        results = ps.inspect(tiny_model("llama"), "cat", prompt=PROMPT, source_layers=1, max_new_tokens=2)
    assert cells(results)[0].flags == ("sink",)
    inside = inspect(tiny_model("llama"), "the cat", source_layers=1)
    with_bos = inspect(tiny_model("llama", add_bos=True), "cat", source_layers=1)
    assert (cells(inside)[0].flags, cells(with_bos)[0].flags) == ((), ())
    assert cells(with_bos)[0].position == 1, "BOS is counted"


def test_rule_7_a_placeholder_is_exactly_one_token_on_its_own(llama: Model) -> None:
    target = resolve_target(llama, InspectionPrompt("cat {} of {}"))
    assert target.positions == (1, 3)
    assert [target.tokenized.tokens[i] for i in target.positions] == [" x", " x"]
    with pytest.raises(errors.PlaceholderError, match="0 times"):
        resolve_target(llama, InspectionPrompt("the capital"))
    with pytest.raises(errors.PlaceholderError, match=r"takes \d tokens"):
        resolve_target(llama, InspectionPrompt(PROMPT, placeholder="qvz"))
    with pytest.raises(errors.PlaceholderError, match="merges"):
        resolve_target(llama, InspectionPrompt("cat {};", placeholder="!"))
    with pytest.raises(errors.PromptError, match="neither an inspection prompt with"):
        inspect(llama, SENTENCE, prompt="entity")


def test_rule_8_tokens_as_shipped() -> None:
    plain, with_bos = tiny_model("llama"), tiny_model("llama", add_bos=True)
    assert tokenize(plain, "cat").ids == tuple(plain.tokenizer("cat")["input_ids"])
    assert tokenize(plain, "cat", bos="always").ids[0] == families.BOS_ID
    assert tokenize(with_bos, "cat", bos="never").ids == tokenize(plain, "cat").ids
    assert families.EOS_ID not in tokenize(with_bos, "cat").ids
    chat = resolve_target(with_bos, InspectionPrompt("{} {}", chat=True, reply="the"))
    assert chat.tokenized.ids.count(families.BOS_ID) == 1, "the template's own, and no second"
    with pytest.warns(ps.PatchscopesWarning, match="needs a BOS"):
        ps.inspect(tiny_model("gemma3"), SENTENCE, prompt=PROMPT, source_layers=1, max_new_tokens=1)


def test_rule_10_greedy_whatever_the_generation_config_says() -> None:
    hf = copy.deepcopy(families.build("llama"))
    hf.generation_config.update(do_sample=True, temperature=9.0, top_k=2, repetition_penalty=5.0)
    random_minded = wrap_in_memory(hf, families.tiny_tokenizer())
    expected = [row.text for row in inspect(tiny_model("llama"), SENTENCE)]
    assert [row.text for row in inspect(random_minded, SENTENCE)] == expected


def test_rule_10_samples_depend_on_seed_and_cell_alone() -> None:
    model, options = tiny_model("qwen2"), {"temperature": 1.5, "n_samples": 3, "controls": ()}
    first = inspect(model, [SENTENCE, "the cat"], **options)
    alone = inspect(model, "the cat", runner="reference", **options)
    assert [row.text for row in first if row.source_index == 1] == [row.text for row in alone]
    assert len({row.text for row in first}) > 5
    assert [row.text for row in inspect(model, [SENTENCE, "the cat"], seed=1, **options)] != [row.text for row in first]


def test_rule_11_stopping() -> None:
    model = tiny_model("llama")
    rows = cells(inspect(model, [SENTENCE, "the cat"], target_layers="all", max_new_tokens=8))
    reasons = Counter(row.finish_reason for row in rows)
    assert reasons["eos"]
    assert reasons["length"]
    for row in (row for row in rows if row.status == "ok"):
        assert row.token_ids is not None
        assert (row.token_ids[-1] in model.eos_ids) == (row.finish_reason == "eos")
        assert row.finish_reason != "length" or len(row.token_ids) == 8
        assert "<eos>" not in (row.text or "")
    longest = max((row for row in rows if row.finish_reason == "length"), key=lambda row: len(row.text or ""))
    assert longest.text is not None
    stop = longest.text[2:4]
    layers = {"source_layers": longest.source_layer, "target_layers": longest.target_layer}
    for runner in ("engine", "reference"):
        again = cells(inspect(model, longest.source, stop=stop, max_new_tokens=8, runner=runner, **layers))[0]
        assert again.finish_reason == "stop"
        assert again.text == longest.text[: longest.text.index(stop)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])
def test_rule_12_inert_cells_are_reported_and_never_scored(family: str) -> None:
    model = tiny_model(family)
    n = model.n_layers
    rows = cells(inspect(model, SENTENCE, source_layers=[0, n], target_layers=[n - 1, n], expect="cat"))
    assert [row.status for row in rows] == ["ok", "inert", "ok", "inert"]
    assert all(row.expected is None for row in rows if row.status == "inert")
    read = cells(inspect(model, SENTENCE, prompt="cat of {}", target_layers=[n]))
    assert {row.status for row in read} == {"ok"}, "what is read at the placeholder itself is not inert"
    unpatched = oracle.patchscope(
        model.hf, None, oracle.Target(tokenize(model, "the capital of x is").ids, (), 0), max_new_tokens=3
    )
    written = oracle.patchscope(
        model.hf,
        torch.ones(model.d_model),
        oracle.Target(tokenize(model, "the capital of x is").ids, (3,), n),
        max_new_tokens=3,
    )
    assert written.token_ids == unpatched.token_ids, "inert means what it says"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_rule_13_logits_are_the_models_own(family: str) -> None:
    model = tiny_model(family)
    logits = model.all_logits(tensor(IDS))[0]
    assert torch.allclose(model.unembed(captured(model)[-1]), logits, atol=1e-4)
    assert torch.allclose(model.next_logits(tensor(IDS))[0], logits[-1], atol=1e-4)


def test_rule_15_shared_work_is_planned_once(llama: Model) -> None:
    inspection = ps.prepare(llama, [SENTENCE, "the cat"], prompt=[PROMPT, "cat {}"], target_layers="all", controls=())
    plan = inspection.plan
    n = llama.n_layers
    assert len(plan.cells) == 2 * (n + 1) * (n + 1) * 2 - 2 * (n + 1), (
        "every pair but those at the last layer of PROMPT"
    )
    (wave,) = plan.waves
    assert sum(map(len, wave.source_batches)) == 2, "one source pass per source prompt"
    assert [prompt.start for prompt in wave.prompts] == [3, 1], "each inspection prompt is run once, for all its cells"
    assert [len(group.prefix) for group in wave.groups] == [3, 1], "and what stands before its placeholder kept once"
    assert sorted(index for group in wave.groups for index in group.cells) == list(range(len(plan.cells)))


def test_rule_15_length_dependent_rotary_stays_on_one_side() -> None:
    config = transformers.Phi3Config(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
        },
        original_max_position_embeddings=64,
        max_position_embeddings=256,
        hidden_size=32,
        num_attention_heads=4,
    )
    assert rope_switch(config) == 64
    model = tiny_model("phi3")
    try:
        model.rope_switch = 20
        with pytest.raises(errors.ContextLengthError, match="changes its rotary frequencies"):
            inspect(model, SENTENCE, max_new_tokens=19)
        assert inspect(model, SENTENCE, max_new_tokens=2).complete
    finally:
        model.rope_switch = None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.MambaConfig(), "state-space or hybrid"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.JambaConfig(), "state-space or hybrid"),
        (transformers.BertConfig(), "encoder"),
        (transformers.Qwen3NextConfig(), "state-space or hybrid"),
    ],
)
def test_rule_15_other_kinds_of_model_are_refused_with_the_reason(config: object, reason: str) -> None:
    with pytest.raises(errors.UnsupportedModelError, match=reason):
        refuse_unsupported(config)  # type: ignore[arg-type]


def test_rule_16_rows_of_each_control(llama: Model) -> None:
    n = llama.n_layers + 1
    results = inspect(
        llama,
        [Source(SENTENCE, at="span:of Spain"), "the cat", "hello"],
        prompt=[PROMPT, "cat {}"],
        controls=tuple(CONTROLS),
        draws=2,
    )
    expected = {
        None: 4 * n * 2,
        "unpatched": 2,
        "self": 2 * n,
        "zero": 2 * n,
        "random": 4 * n * 2 * 2,
        "random-state": 4 * n * 2 * 2,
        "shuffled": 4 * n * 2 * 2,
        "mean": 4 * n * 2,
        "text-only": 4 * 2,
        "phrase-only": 4 * 2,
    }
    assert Counter(row.control for row in results) == expected
    assert all(row.source is None and row.source_layer is None for row in control(results, "unpatched"))
    order = [
        (r.source_index, r.position, r.source_layer, r.target_layer, r.prompt, r.draw)
        for r in control(results, "random")
    ]
    labels = [PROMPT, "cat {}"]
    assert order == sorted(order, key=lambda key: (*key[:4], labels.index(str(key[4])), key[5]))


def test_rule_16_self_changes_nothing(llama: Model) -> None:
    for prompt in (PROMPT, "cat {} of {} is", "{} is"):
        results = inspect(llama, SENTENCE, prompt=prompt, controls=("unpatched", "self"), max_new_tokens=6)
        unpatched = control(results, "unpatched")[0]
        assert {row.text for row in control(results, "self") if row.status == "ok"} == {unpatched.text}


def test_rule_16_random_is_keyed_by_seed_draw_source_and_layer() -> None:
    model = tiny_model("llama")
    state = State(tokenize(model, SENTENCE).ids, 3, 2)
    reference = Reference(model)
    norm = reference.state(state).norm()

    def noise(state: State, seed: int = 0, draw: int = 0) -> torch.Tensor:
        return make_vectors([Noise(state, seed, draw)], reference)[0]

    assert torch.equal(noise(state), noise(state))
    assert noise(state).norm() == pytest.approx(float(norm), rel=1e-5)
    others = [noise(state, seed=1), noise(state, draw=1), noise(State(state.ids, 2, 2)), noise(State(state.ids, 3, 1))]
    for other in others:
        assert abs(torch.cosine_similarity(noise(state), other, dim=0)) < 0.6


def test_rule_16_random_state_is_one_place_for_all_layers_at_the_cells_norm(llama: Model) -> None:
    inspection = ps.prepare(llama, SENTENCE, prompt=PROMPT, target_layers="all", controls=("random-state",), draws=2)
    vectors = [
        (request.draw, request.cell.write.vectors[0])
        for request in inspection.requests
        if request.control and request.cell and request.cell.write
    ]
    places = {(draw, v.state.ids, v.state.position) for draw, v in vectors if isinstance(v, Neutral)}
    assert len(places) == 2, "one place a draw, whatever the layer"
    assert all(position >= 1 for _, _, position in places)
    vector = next(v for _, v in vectors if isinstance(v, Neutral) and v.state.layer == 2)
    reference = Reference(llama)
    made = make_vectors([vector], reference)[0]
    assert made.norm() == pytest.approx(float(reference.state(vector.like).norm()), rel=1e-5)
    assert torch.cosine_similarity(made, reference.state(vector.state), dim=0) == pytest.approx(1, abs=1e-5)


def test_rule_16_text_only_is_the_text_up_to_the_token(llama: Model) -> None:
    results = inspect(llama, Source(SENTENCE, at="of"), controls=("text-only",), source_layers=1, max_new_tokens=4)
    row = control(results, "text-only")[0]
    written = tokenize(llama, "the capital of the cat of is").ids
    assert row.token_ids == oracle.patchscope(llama.hf, None, oracle.Target(written, (), 0), max_new_tokens=4).token_ids
    with_bos = inspect(tiny_model("llama", add_bos=True), Source("cat", at=0), controls=("text-only",), source_layers=1)
    row = control(with_bos, "text-only")[0]
    assert row.status == "failed"
    assert "no text stands before" in (row.reason or "")


def test_rule_16_zero_writes_zero(llama: Model) -> None:
    row = control(inspect(llama, SENTENCE, controls=("zero",), source_layers=2, max_new_tokens=4), "zero")[0]
    target = oracle.Target(tokenize(llama, "the capital of x is").ids, (3,), 2)
    assert row.token_ids == oracle.patchscope(llama.hf, torch.zeros(llama.d_model), target, max_new_tokens=4).token_ids


def test_rule_18_answers_are_matched_and_leaks_flagged(llama: Model) -> None:
    results = inspect(
        llama, Source(SENTENCE, at="Spain", expect=("Spain",)), source_layers=[1], controls=("text-only",)
    )
    assert all("leaked" in row.flags for row in results)
    clean = inspect(llama, Source(SENTENCE, at="cat", expect=("Spain",)), source_layers=[1], controls=())
    assert cells(clean)[0].flags == (), "the answer comes after the token that is read"
    text = cells(clean)[0].text
    assert text is not None
    assert cells(clean)[0].expected is False
    given = inspect(llama, Source(SENTENCE, at="cat", expect=(text,)), source_layers=[1], controls=())
    assert cells(given)[0].expected is True


def test_rule_21_nothing_is_dropped_in_silence(llama: Model) -> None:
    results = inspect(llama, ["the cat", "", Source("the cat", at="Wales"), Source("cat", at=9)], source_layers=[0, 4])
    # Layers 0 and 4 of one good source, its random states, the unpatched prompt; writes at layer 4 are inert.
    assert {status: n for status, n in results.counts.items() if n} == {"ok": 3, "inert": 2, "failed": 3}
    failed = [row for row in results if row.status == "failed"]
    assert [row.source_index for row in failed] == [1, 2, 3]
    for row in results:
        empty = row.text is None and row.token_ids is None and row.finish_reason is None
        assert empty == (row.status != "ok")
        assert (row.reason is None) == (row.status == "ok")


def test_rule_22_every_output_records_what_made_it(llama: Model) -> None:
    document = json.loads(inspect(llama, SENTENCE, source_layers=1, seed=7).to_json())
    assert set(document) == {"schema", "model", "spec", "complete", "cells"}
    assert document["model"]["weights"] == llama.fingerprint
    assert (document["model"]["dtype"], document["model"]["device"]) == ("float32", "cpu")
    assert document["spec"]["seed"] == 7
    assert set(document["spec"]["versions"]) >= {"patchscopes", "torch", "transformers", "python"}
    assert document["spec"]["sources"][0]["text"] == SENTENCE
    assert "commit" in document["spec"]


def test_identity_hashes_what_changes_the_result_and_nothing_else(llama: Model) -> None:
    def one(model: Model = llama, **options: object) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cells(inspect(model, Source(SENTENCE, at="cat"), **{"source_layers": 2, "controls": (), **options}))[
                0
            ].cell

    same = [one(), one(seed=5), one(runner="reference"), one(memory_bytes=2**30), one(expect="cat"), one(top_k=3)]
    assert len(set(same)) == 1
    other = wrap_in_memory(families.build("llama", seed=1), families.tiny_tokenizer())
    changed = [
        one(max_new_tokens=4),
        one(source_layers=1),
        one(target_layers=1),
        one(prompt="cat {}"),
        one(other),
        one(readout="next-token"),
        one(temperature=1.0),
        one(temperature=1.0, seed=1),
        one(stop="cat"),
        one(bos="always"),
    ]
    assert len({same[0], *changed}) == 1 + len(changed)


def test_equal_cells_run_once_and_give_a_row_each(llama: Model) -> None:
    inspection = ps.prepare(llama, ["the cat", "the cat"], prompt=PROMPT, source_layers=1, controls=())
    assert len(inspection.plan.cells) == 1
    rows = list(inspection.results())
    assert [row.source_index for row in rows] == [0, 1]
    assert rows[0].cell == rows[1].cell
    assert len(run_cells(llama, Engine(llama), inspection.plan.cells, AMPLE)) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rule_9_in_half_precision_ours_differs_by_at_most_half_more_than_theirs(dtype: torch.dtype) -> None:
    hf = copy.deepcopy(families.build("granite")).to(dtype)
    found = measure(wrap_in_memory(hf, families.tiny_tokenizer()))
    assert found.n_tokens >= 8 * 32
    assert 0 < found.ours.median <= 1.5 * found.theirs.median
    assert 0 < found.ours.high <= 1.5 * found.theirs.high
