"""Masked positions: no later token attends to them, positions stay; the same whoever runs it.

The oracle gives each query the keys that it sees; the reference hides columns; the engine leaves the tokens out.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

import families
import oracle
import patchscopes as ps
from cells import AMPLE, NEW_TOKENS, make_cell
from conftest import tiny_model
from patchscopes.api import InspectOptions
from patchscopes.engine import Engine
from patchscopes.errors import (
    ContextLengthError,
    OptionError,
    PatchscopesWarning,
    PlaceholderError,
    PositionError,
    PromptError,
)
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.readouts import decode
from patchscopes.reference import Reference
from patchscopes.run import run_cells
from patchscopes.spec import Cell, InspectionPrompt, Site, Source, State, Write

# Prompts are within the window of the families that have one; sources may be longer.
FAMILIES = [name for name in families.FAMILIES if name not in families.ALIBI]
SLIDING = families.SLIDING
SOURCE = (17, 33, 60, 21, 45, 70, 19)
TARGET = (30, 31, 64, 22, 40, 90, 35)


def plain_cells(model: Model, kind: str = "text") -> list[Cell]:
    """Masks in the source, and in the prompt before, around and behind what is written, its end included."""
    target = TARGET if model.window is None else TARGET[:3]
    n = len(target)
    places = [((1,), (n - 1,)), ((0,), (1,)), ((1,), (0,)), ((0,), tuple(range(1, n)))]
    if n > 4:
        places += [((2, 4), (0, 3, n - 1)), ((n - 1,), (1, 2)), ((3,), (4, 5))]
    cells = []
    for k, (written, masked) in enumerate(places):
        for layer in range(model.n_layers + 1):
            hidden = ((), (0, 1), (1,), (1, 4))[(k + layer) % 4]  # of a source that is longer than the windows
            position = {(0, 1): 2, (1, 4): 6}.get(hidden, 3)
            state = State(SOURCE, position, (layer + k) % (model.n_layers + 1), hidden)
            write = Write(Site(layer), written, (state,) * len(written))
            cells.append(replace(make_cell(model, write, target, kind), masked=masked))
    cells += [replace(make_cell(model, None, target, kind), masked=masked) for _, masked in places]
    if model.window is not None:  # no text behind the prompt stays in the window
        cells = [replace(cell, decoding=replace(cell.decoding, max_new_tokens=1)) for cell in cells]
    return cells


def expected(family: str, cell: Cell) -> oracle.Run:
    what = None
    if cell.write is not None:
        state = cell.write.vectors[0]
        assert isinstance(state, State)
        what = oracle.Source(state.ids, state.position, state.layer, state.masked)
    write = cell.write or Write(Site(0), (), ())
    target = oracle.Target(cell.target_ids, write.positions, write.site.layer, cell.masked)
    return oracle.patchscope(families.build(family), what, target, max_new_tokens=cell.decoding.max_new_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_and_the_engine_see_what_the_oracle_sees(family: str) -> None:
    model = tiny_model(family)
    cells = [cell for cell in plain_cells(model) if cell.write is None or not inert(cell, model)]
    slow = run_cells(model, Reference(model), cells, Budget(AMPLE))
    for max_rows in (64, 3):
        fast = run_cells(model, Engine(model), cells, Budget(AMPLE, max_rows))
        for cell, a, b in zip(cells, slow, fast, strict=True):
            run = expected(family, cell)
            assert run.agrees_with(a.token_ids or ()), (cell.masked, cell.write and cell.write.positions)
            assert run.agrees_with(b.token_ids or ()), (cell.masked, cell.write and cell.write.positions)


def inert(cell: Cell, model: Model) -> bool:
    return cell.write is not None and cell.write.site.layer == model.n_layers


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "falcon", "opt", "qwen3"])
def test_distributions_and_candidates_agree_with_the_oracle(family: str) -> None:
    model = tiny_model(family)
    for cell in plain_cells(model, "next-token")[::3]:
        (slow,), (fast,) = (run_cells(model, run(model), [cell], Budget(AMPLE)) for run in (Reference, Engine))
        logprobs = torch.log_softmax(expected(family, cell).first_logits, -1)
        for found in (slow, fast):
            assert found.top is not None
            for top in found.top:
                assert top.logprob == pytest.approx(float(logprobs[top.token_id]), abs=1e-3)
    answers = ((40,), (41, 42, 43), (44, 45))
    cells = [replace(cell, candidates=answers) for cell in plain_cells(model, "candidates")[::4]]
    slow, fast = (run_cells(model, run(model), cells, Budget(AMPLE)) for run in (Reference, Engine))
    for a, b in zip(slow, fast, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def test_a_masked_text_is_as_if_it_were_another(llama: Model) -> None:
    """What is masked decides nothing: with other tokens there, the same comes out; unmasked, it does not."""
    plain, other = (30, 31, 64, 22, 40, 90, 35), (30, 31, 17, 18, 40, 90, 35)
    state = State(SOURCE, 3, 2)
    texts = []
    for ids in (plain, other):
        for masked in ((2, 3), ()):
            cell = replace(make_cell(llama, Write(Site(1), (1,), (state,)), ids), masked=masked)
            texts.append([r.token_ids for r in run_cells(llama, Engine(llama), [cell], Budget(AMPLE))])
    assert texts[0] == texts[2]
    assert texts[1] != texts[3]


def test_masked_cells_share_what_they_can(llama: Model) -> None:
    cells = plain_cells(llama)
    assert len({cell.identity() for cell in cells}) == len(cells)
    fast = run_cells(llama, Engine(llama), cells, Budget(AMPLE))
    alone = [run_cells(llama, Engine(llama), [cell], Budget(AMPLE))[0] for cell in cells]
    assert [r.token_ids for r in fast] == [r.token_ids for r in alone]


# ------------------------------------------------------------------------------------------------ in the words of users

QUERY = "the capital of the country of Spain"


def test_back_patching_in_one_prompt(llama: Model) -> None:
    """π2 masked from the source, π1 from the target, whose end the text goes on from."""
    options = {
        "prompt": QUERY,
        "target_at": "capital of",
        "source_mask": "the capital of",
        "max_new_tokens": NEW_TOKENS,
    }
    options |= {"target_mask": " the country of Spain", "source_layers": [2], "target_layers": [1], "at": "last"}
    both = [ps.inspect(llama, QUERY, **options, controls=("unpatched",), runner=runner) for runner in ps_runners()]  # type: ignore[arg-type]
    assert [row.text for row in both[0]] == [row.text for row in both[1]]
    ids = tuple(llama.tokenizer(QUERY)["input_ids"])
    hidden = tuple(range(3))
    what = oracle.Source(ids, len(ids) - 1, 2, hidden)
    target = oracle.Target(ids, (2,), 1, tuple(range(3, len(ids))))
    run = oracle.patchscope(families.build("llama"), what, target, max_new_tokens=NEW_TOKENS)
    assert run.agrees_with(both[0][0].token_ids or ())
    assert both[0][0].target_positions == (2,)
    plain = oracle.patchscope(families.build("llama"), None, target, max_new_tokens=NEW_TOKENS)
    assert both[0][1].text == decode(llama.tokenizer, plain.token_ids)


def ps_runners() -> tuple[str, str]:
    return "engine", "reference"


def test_each_source_has_a_prompt_of_its_own(llama: Model) -> None:
    sources = [
        Source(f"the country of {name}", prompt=InspectionPrompt(f"the {name} of x is", at="x"), expect=("cat",))
        for name in ("Spain", "Wales", "Syria")
    ]
    found = ps.inspect(
        llama, sources, source_layers=[1, 2], controls=("unpatched", "self", "shuffled"), max_new_tokens=3
    )
    cells = list(found.cells)
    assert [row.prompt for row in cells] == [
        f"the {name} of x is" for name in ("Spain", "Wales", "Syria") for _ in "ab"
    ]
    unpatched = [row for row in found if row.control == "unpatched"]
    assert [row.prompt for row in unpatched] == [f"the {name} of x is" for name in ("Spain", "Wales", "Syria")]
    assert [row.expected is not None for row in unpatched] == [True] * 3, "the expectation of the prompt's own source"
    assert len([row for row in found if row.control == "self"]) == 6
    assert {row.text for row in found if row.control == "self"} <= {row.text for row in unpatched}
    one = ps.inspect(llama, [replace(sources[1], prompt=None)], prompt="the Wales of x is", target_at="x",
                     source_layers=[1, 2], controls=(), max_new_tokens=3)  # fmt: skip
    assert [row.text for row in one] == [row.text for row in cells[2:4]]
    assert [row.cell for row in one] == [row.cell for row in cells[2:4]]


def test_what_the_call_says_of_prompts_goes_for_a_sources_own(llama: Model) -> None:
    """`placeholder`, `target_at` and `target_mask`, as they go for the call's own InspectionPrompt."""
    calls: list[tuple[InspectionPrompt, dict[str, Any]]] = [
        (InspectionPrompt("the capital of {} is"), {"placeholder": "cat", "target_mask": "the capital"}),
        (InspectionPrompt(QUERY, at="Spain", mask="the"), {"target_at": "capital of", "target_mask": "country"}),
        (InspectionPrompt(QUERY), {"target_at": "capital of"}),
    ]
    for prompt, options in calls:
        options |= {"source_layers": 1, "controls": (), "max_new_tokens": 2}
        own = ps.inspect(llama, [Source("go to Spain", prompt=prompt)], **options)
        of_call = ps.inspect(llama, "go to Spain", prompt=prompt, **options)
        assert [row.cell for row in own] == [row.cell for row in of_call]
        assert own[0].status == "ok"


def test_a_bad_prompt_of_its_own_fails_its_source_alone(llama: Model) -> None:
    sources = [Source("the cat", prompt=InspectionPrompt("no such place", at="x")), "the country"]
    found = ps.inspect(llama, sources, prompt="the capital of {}", source_layers=1, controls=(), max_new_tokens=2)
    assert [row.status for row in found] == ["failed", "ok"]
    assert "'x' occurs 0 times" in (found[0].reason or "")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"source_mask": "no such"}, PositionError, r"the mask 'no such' occurs 0 times in .*, in its case\.\n"),
        ({"source_mask": "the coun"}, PositionError, "the mask 'the coun' ends inside a token"),
        ({"source_mask": "of Spain"}, PositionError, "which 'of Spain' masks; read another"),
        ({"source_mask": " "}, PositionError, "give a phrase"),
        ({"source_mask": "ountry"}, PositionError, "the mask 'ountry' begins inside a token"),
        ({"prompt": QUERY}, PromptError, "needs target_at"),
        ({"prompt": InspectionPrompt(QUERY)}, PlaceholderError, "or name it by target_at"),
        ({"prompt": "the {} of", "target_at": "of"}, OptionError, "give one of them"),
        ({"prompt": QUERY, "target_at": "capital", "target_mask": "the capital"}, PositionError, "written and masked"),
        ({"prompt": QUERY, "target_at": "the"}, PositionError, "occurs twice"),
    ],
)
def test_what_cannot_be_masked_or_found_is_refused(
    llama: Model, options: dict[str, object], error: type, said: str
) -> None:
    wanted = {"prompt": "the capital of {}", "controls": (), "source_layers": 1} | options
    with pytest.raises(error, match=said):
        ps.inspect(llama, "the country of Spain", **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", sorted(families.ALIBI))
def test_a_model_that_counts_its_mask_is_refused(family: str) -> None:
    with pytest.raises(OptionError, match="ALiBi"):
        ps.inspect(tiny_model(family), "the country of Spain", prompt="the capital of {}", source_mask="the")
    with pytest.raises(OptionError, match="ALiBi"):
        ps.inspect(tiny_model(family), "the country of Spain", prompt="the capital of {}", target_mask="the")


@pytest.mark.parametrize("family", sorted(SLIDING))
def test_a_masked_prompt_beyond_the_window_is_refused(family: str) -> None:
    with pytest.raises(ContextLengthError, match=r"sliding layers of .* see 4"):
        ps.inspect(tiny_model(family), "the country", prompt="the capital of {} is", target_mask="the", controls=())


@pytest.mark.filterwarnings("ignore::patchscopes.errors.PatchscopesWarning")
@pytest.mark.parametrize("family", sorted(SLIDING))
def test_what_comes_behind_a_masked_prompt_stays_within_the_window_too(family: str) -> None:
    """Candidates, and a text in the placeholder's stead, may be longer than what the prompt itself comes to."""
    model = tiny_model(family)
    asked = {"prompt": "{} of", "target_mask": " of", "source_layers": 1, "target_layers": 1}
    with pytest.raises(ContextLengthError, match=r"sliding layers of .* see 4"):
        ps.inspect(model, "the cat", candidates=["the country of Spain go to Wales"], controls=(), **asked)  # type: ignore[arg-type]
    found = ps.inspect(model, "hello the cat go", readout="next-token", controls=("text-only",), **asked)  # type: ignore[arg-type]
    assert [row.status for row in found] == ["ok", "failed"]
    assert "see 4" in (found[1].reason or "")


def test_a_prompt_that_several_sources_have_is_one(llama: Model) -> None:
    """Controls without a source come once a prompt (rule 16), whoever named it."""
    prompt = InspectionPrompt("the capital of {} is")
    sources = [Source("go to Spain", prompt=prompt), Source("go to Wales", prompt=prompt), "hello the cat"]
    found = ps.inspect(
        llama, sources, prompt=prompt, source_layers=1, controls=("unpatched", "self", "zero"), max_new_tokens=2
    )
    assert [row.control for row in found if row.control] == ["unpatched", "self", "zero"]
    assert [row.source_index for row in found.cells] == [0, 1, 2]
    assert len({row.cell for row in found}) == len(found)


def test_a_place_that_sees_itself_alone_is_a_sink(llama: Model) -> None:
    prompt = InspectionPrompt("the capital of the cat", at="of", mask="the capital")
    for one, flagged in ((prompt, True), (replace(prompt, mask="the cat"), False)):
        with pytest.warns(PatchscopesWarning, match="all before it is masked") if flagged else nullcontext():
            (row,) = ps.inspect(llama, "go to Spain", prompt=one, source_layers=1, controls=(), max_new_tokens=2)
        assert ("target-sink" in row.flags) is flagged


def test_prompts_that_rows_could_not_tell_apart_are_refused(llama: Model) -> None:
    prompt = InspectionPrompt("the capital of Spain is", at="of")
    asked: InspectOptions = {"source_layers": 1, "controls": (), "max_new_tokens": 2}
    with pytest.raises(OptionError, match=r"both called .*mask: None and 'Spain'.*name="):
        ps.inspect(llama, "go to Wales", prompt=[prompt, replace(prompt, mask="Spain")], **asked)
    sources = ["go to Wales", Source("go to Spain", prompt=replace(prompt, at="capital"))]
    with pytest.raises(OptionError, match="both called"):
        ps.inspect(llama, sources, prompt=prompt, **asked)
    named = replace(prompt, mask="Spain", name="without Spain")
    found = ps.inspect(llama, "go to Wales", prompt=[prompt, named], **asked)
    assert [row.prompt for row in found] == ["the capital of Spain is", "without Spain"]
