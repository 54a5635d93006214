"""From one model into another, through f: the engine, the reference and the oracle write the same vectors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import families
import odd_tokenizers
import oracle
import patchscopes as ps
from cells import AMPLE
from conftest import tiny_model
from patchscopes.api import InspectOptions
from patchscopes.engine import Engine
from patchscopes.errors import LayerError, MappingError
from patchscopes.mappings import Kind, Mapping, Mappings, Side, Transfer
from patchscopes.models import Model
from patchscopes.plan import Budget, states_of
from patchscopes.prompts import tokenize
from patchscopes.reference import Reference
from patchscopes.run import run_cells
from patchscopes.spec import Mean, Neutral, Noise, Own, Request, State, Zero
from patchscopes.vectors import gaussian, rescaled

TEXTS = ("the country of Spain", "go to Wales", "hello the cat")
PROMPT = "the capital of {} is"
CONTROLS = ("unpatched", "self", "zero", "random", "random-state", "shuffled", "mean", "text-only")
PAIRS = [("llama", "qwen3"), ("gpt2", "llama"), ("gemma3", "gpt-neox"), ("llama", "llama")]
LAYERS = {"source_layers": [1, 3], "target_layers": [0, 2]}


def planted(source: Model, target: Model, *, kind: Kind = "affine", seed: int = 1) -> Mappings:
    """Mappings drawn at random, with a bias that shows."""
    draw = torch.Generator().manual_seed(seed)
    by_pair = {
        (a, b): Mapping(
            torch.randn(source.d_model, target.d_model, generator=draw) / source.d_model**0.5,
            torch.randn(target.d_model, generator=draw),
        )
        for a in LAYERS["source_layers"]
        for b in LAYERS["target_layers"]
    }
    return Mappings(kind, Side.of(source), Side.of(target), by_pair, {"by": "the test"})


def states(model: Model, *wanted: State) -> torch.Tensor:
    family = next(name for name in families.FAMILIES if tiny_model(name) is model)
    return torch.stack([oracle.states(families.build(family), s.ids)[s.layer, s.position] for s in wanted])


def vector(request: Request, transfer: Transfer) -> torch.Tensor | None:
    """What the request writes, worked out from its specification by the oracle's states."""
    assert request.cell is not None
    if request.cell.write is None:
        return None
    made = request.cell.write.vectors[0]
    if isinstance(made, Own):
        return states(transfer.target, made.state)[0]
    assert transfer.mappings is not None
    assert request.source_layer is not None
    assert request.target_layer is not None
    mapping = transfer.mappings.by_pair[request.source_layer, request.target_layer]

    def f(*wanted: State) -> torch.Tensor:
        h = states(transfer.source, *wanted) if wanted else torch.zeros(1, transfer.source.d_model)
        return h.mean(0) @ mapping.weight + mapping.bias

    match made:
        case Neutral(state=state, like=like):
            return rescaled(f(state), f(like))
        case Noise(like=like):
            return rescaled(torch.from_numpy(gaussian(made, transfer.target.d_model)), f(like))
        case _:
            assert isinstance(made, State | Mean | Zero)
            return f(*states_of(made))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("readout", ["text", "next-token"])
def test_engine_reference_and_oracle_agree(source: str, target: str, readout: str) -> None:
    transfer = Transfer(tiny_model(source), tiny_model(target), planted(tiny_model(source), tiny_model(target)))
    options = {"prompt": PROMPT, "controls": CONTROLS, "readout": readout, "max_new_tokens": 5, **LAYERS}
    if "gemma3" in (source, target):
        options["bos"] = "always"
    inspection = ps.prepare(
        transfer.source,
        TEXTS,
        target_model=transfer.target,
        mapping=transfer.mappings,
        **options,  # type: ignore[arg-type]
    )
    cells = inspection.plan.cells
    slow, fast = (run_cells(transfer.target, run(transfer), cells, Budget(AMPLE)) for run in (Reference, Engine))
    number = {cell.identity(): k for k, cell in enumerate(cells)}
    seen = set()
    for request, identity in zip(inspection.requests, inspection.identities, strict=True):
        if request.cell is None or request.status != "ok" or identity in seen:
            continue
        seen.add(identity)
        write = request.cell.write
        where = oracle.Target(
            request.cell.target_ids, write.positions if write else (), write.site.layer if write else 0
        )
        run = oracle.patchscope(
            families.build(target), vector(request, transfer), where, max_new_tokens=5 if readout == "text" else 1
        )
        for result in (slow[number[identity or ""]], fast[number[identity or ""]]):
            assert run.agrees_with(result.token_ids or ()), request.control
    assert len(seen) == len(cells)


def test_rows_say_where_they_come_from_and_go_to(tmp_path: Path) -> None:
    source, target = tiny_model("llama"), tiny_model("qwen3")
    mapping = planted(source, target)
    mapping.save(tmp_path / "f.safetensors")
    found = ps.inspect(
        source, TEXTS, prompt=PROMPT, target_model=target, mapping=tmp_path / "f.safetensors", max_new_tokens=2,
        controls=("unpatched", "self", "zero", "shuffled"), run=tmp_path / "run", **LAYERS,  # type: ignore[arg-type]
    )  # fmt: skip
    assert {(row.model, row.target_model) for row in found} == {(source.id, target.id)}
    for row in found:
        pair = row.source_layer, row.target_layer
        own = row.control in (None, "zero", "shuffled")
        assert row.mapping == (mapping.label(pair) if own else None)  # type: ignore[arg-type]
    assert len([row for row in found if row.control == "zero"]) == 4, "one a (ℓ, ℓ*): each map has its own bias"
    assert len({row.text for row in found if row.control == "self"}) == 1, "the target's own state changes nothing"
    assert found.spec["f"]["source"]["weights"] == source.fingerprint
    assert found.spec["target"]["id"] == target.id
    assert found.spec["mapping"] == mapping.digest
    assert list(ps.open_run(tmp_path / "run")) == list(found)
    assert f"{source.id} → {target.id} through affine" in " ".join(str(found).split())
    other = planted(source, target, seed=2)
    with pytest.raises(ps.PatchscopesError, match="mapping"):
        ps.inspect(source, TEXTS, prompt=PROMPT, target_model=target, mapping=other, max_new_tokens=2,
                   controls=("unpatched", "self", "zero", "shuffled"), run=tmp_path / "run", **LAYERS)  # fmt: skip # type: ignore[arg-type]


def test_what_changes_the_result_changes_the_identity() -> None:
    source, target = tiny_model("llama"), tiny_model("qwen3")

    def identities(mapping: Mappings) -> set[str]:
        inspection = ps.prepare(
            source, TEXTS, prompt=PROMPT, target_model=target, mapping=mapping, controls=(), **LAYERS
        )  # type: ignore[arg-type]
        return {cell.identity() for cell in inspection.plan.cells}

    one, same, other = (identities(planted(source, target, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert not one & other
    cell = ps.prepare(
        source,
        "go to Wales",
        prompt=PROMPT,
        target_model=target,
        mapping=planted(source, target),
        controls=(),
        **LAYERS,  # type: ignore[arg-type]
    ).plan.cells[0]
    assert cell.model == target.identity
    assert cell.source_model == source.identity
    changes = ({"mapping": None}, {"source_model": None}, {"source_model": "other"}, {"masked": (1,)})
    assert len({replace(cell, **change).identity() for change in ({}, *changes)}) == 5  # type: ignore[arg-type]


def test_a_row_that_is_compared_with_a_source_hangs_on_its_model() -> None:
    """text-only writes nothing, and stands beside the source's own next token; self takes nothing from a source."""
    target = tiny_model("qwen3")
    found = {}
    for family in ("llama", "gpt2"):
        source = tiny_model(family)
        found[family] = ps.inspect(
            source, TEXTS[0], prompt=PROMPT, target_model=target, mapping=planted(source, target), readout="next-token",
            controls=("self", "text-only"), **LAYERS,
        )  # fmt: skip # type: ignore[arg-type]
    a, b = ({row.control: row for row in results if row.control} for results in found.values())
    assert a["text-only"].surprisal_under_source != pytest.approx(b["text-only"].surprisal_under_source)
    assert a["text-only"].cell != b["text-only"].cell
    assert a["text-only"].top == b["text-only"].top
    assert a["self"].cell == b["self"].cell


def test_models_of_one_width_need_no_mapping() -> None:
    """A fine-tuned model is read by the one that it was made from."""
    source, target = tiny_model("llama"), tiny_model("gpt2")
    found = ps.inspect(
        source, "go to Spain", prompt=PROMPT, target_model=target, controls=(), max_new_tokens=3, **LAYERS
    )  # type: ignore[arg-type]
    ids, prompt = tokenize(source, "go to Spain").ids, tokenize(target, "the capital of x is").ids
    for row in found:
        assert row.source_layer is not None
        assert row.target_layer is not None
        run = oracle.patchscope(
            families.build("gpt2"), oracle.Source(ids, len(ids) - 1, row.source_layer),
            oracle.Target(prompt, row.target_positions, row.target_layer), max_new_tokens=3,
            source_model=families.build("llama"),
        )  # fmt: skip
        assert run.agrees_with(row.token_ids or ())
        assert row.mapping is None


def test_a_mapping_within_one_model_leaves_self_alone() -> None:
    model = tiny_model("llama")
    found = ps.inspect(model, TEXTS, prompt=PROMPT, mapping=planted(model, model), controls=("unpatched", "self"),
                       max_new_tokens=4, **LAYERS)  # fmt: skip # type: ignore[arg-type]
    assert {row.text for row in found if row.control} == {found.controls[0].text}


def test_a_table_says_that_zero_is_what_the_mapping_makes_of_it() -> None:
    model = tiny_model("llama")
    for mapping, said in ((planted(model, model), "zero: what the mapping makes"), (None, "zero: the zero vector")):
        layers: InspectOptions = {"source_layers": 1, "target_layers": 2}
        found = ps.inspect(
            model, TEXTS[0], prompt=PROMPT, mapping=mapping, controls=("zero",), max_new_tokens=2, **layers
        )
        assert said in " ".join(str(found).split())


# -------------------------------------------------------------------------------------------------- the next token of M


@pytest.mark.parametrize("family", families.FAMILIES)
def test_next_tokens_stand_beside_the_source_runs_own(family: str) -> None:
    model = tiny_model(family)
    bos = "always" if model.architecture.needs_bos else "auto"
    results = {
        runner: ps.inspect(
            model, TEXTS, prompt=PROMPT, readout="next-token", controls=("shuffled", "unpatched"), runner=runner,
            bos=bos,
            source_layers=[1, model.n_layers], target_layers=[0, 1],
        )
        for runner in ("engine", "reference")
    }  # fmt: skip
    for fast, slow in zip(results["engine"], results["reference"], strict=True):
        if fast.control == "unpatched":
            assert fast.source_next is fast.agrees is fast.surprisal_under_source is None
            continue
        assert (fast.source_next, fast.agrees) == (slow.source_next, slow.agrees)
        assert fast.surprisal_under_source == pytest.approx(slow.surprisal_under_source, abs=1e-3)
        assert fast.surprisal_under_patched == pytest.approx(slow.surprisal_under_patched, abs=1e-3)
        ids = tokenize(model, str(fast.source), bos=bos).ids
        source = oracle.patchscope(families.build(family), None, oracle.Target(ids, (), 0), max_new_tokens=1)
        logprobs = torch.log_softmax(source.first_logits, -1)
        assert fast.token_ids is not None
        assert fast.top is not None
        assert fast.surprisal_under_source == pytest.approx(-float(logprobs[fast.token_ids[0]]), abs=1e-3)
        assert fast.agrees == (fast.token_ids[0] == int(logprobs.argmax()))
        if fast.agrees:
            assert fast.surprisal_under_patched == pytest.approx(-fast.top[0].logprob, abs=1e-3)


def test_writing_the_last_layer_at_the_end_is_the_logit_lens(llama: Model) -> None:
    """ℓ* = n_layers at the token that is read, f = I: at ℓ = n_layers it is the source's own distribution."""
    found = ps.inspect(llama, TEXTS, prompt="the capital of {}", readout="next-token", controls=(),
                       source_layers="all", target_layers=llama.n_layers)  # fmt: skip
    for row in found:
        assert row.status == "ok"
        if row.source_layer == llama.n_layers:
            assert row.agrees
            assert row.surprisal_under_source == pytest.approx(row.surprisal_under_patched, abs=1e-4)
    state = oracle.states(families.build("llama"), tokenize(llama, TEXTS[0]).ids)[2, -1]
    top = torch.log_softmax(oracle.readout(families.build("llama"), state), -1)
    row = next(row for row in found if row.source_layer == 2 and row.source_index == 0)
    assert row.top is not None
    assert row.top[0].logprob == pytest.approx(float(top.max()), abs=1e-3)


def test_texts_in_the_placeholders_stead_are_compared_too(llama: Model) -> None:
    for runner in ("engine", "reference"):
        found = ps.inspect(llama, TEXTS, prompt=PROMPT, readout="next-token", controls=("text-only",), source_layers=1,
                           runner=runner)  # fmt: skip
        assert all(row.surprisal_under_source is not None for row in found)


def test_another_vocabulary_is_not_compared() -> None:
    source, target = tiny_model("llama"), odd_tokenizers.model_with("gemma")
    found = ps.inspect(source, "go to Spain", prompt="the capital of {} is", target_model=target, readout="next-token",
                       source_layers=1, target_layers=1, controls=())  # fmt: skip
    assert found[0].source_next is None
    assert found[0].top is not None


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source, target = tiny_model("llama"), tiny_model("qwen3")
    mapping = planted(source, target)
    call = {"prompt": PROMPT, "controls": (), **LAYERS}

    def refused(error: type, said: str, model: Model = source, **more: object) -> None:
        with pytest.raises(error, match=said):
            ps.inspect(model, "go to Spain", **call | more)  # type: ignore[arg-type]

    refused(MappingError, "have 32 dimensions and .* needs 40: give a mapping", target_model=target)
    refused(
        MappingError,
        "fitted for the source model llama .* has sha256",
        tiny_model("gpt2"),
        target_model=target,
        mapping=mapping,
    )
    refused(MappingError, "fitted for the target model", mapping=mapping)
    refused(
        MappingError,
        r"not fitted for \(ℓ, ℓ\*\) = \(2, 0\); it has ℓ = 1, 3 with ℓ\* = 0, 2",
        target_model=target,
        mapping=mapping,
        source_layers=2,
    )
    refused(MappingError, "cannot be read as mappings", target_model=target, mapping=tmp_path / "none.safetensors")
    refused(
        LayerError,
        "'same' asks for layer 4 of .*, which has 0 to 3",
        target_model=tiny_model("phi3"),
        source_layers="all",
        target_layers="same",
    )
