"""The engine on real models: the tokens of the reference and of plain hooks, and much faster than one at a time."""

import os
import statistics
import subprocess
import sys
import time
import warnings

import pytest
import torch

import oracle
import patchscopes as ps
from patchscopes.engine import Engine
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.reference import Reference
from patchscopes.run import run_cells
from patchscopes.spec import Cell, Result, State

pytestmark = pytest.mark.real

NAME = "Diana, Princess of Wales"
SOURCES = (
    NAME,
    "Alexander the Great of Macedon",
    "the city of New York",
    "Barack Obama was the president",
    "the Eiffel Tower in Paris",
    "William Shakespeare the playwright",
    "the Roman Empire in Europe",
    "the painter Leonardo da Vinci",
)
ALL_CONTROLS = (
    "unpatched", "self", "zero", "random", "random-state", "shuffled", "mean", "text-only", "phrase-only"
)  # fmt: skip
AMPLE = Budget(2**32)


def cells_of(model: Model, *arguments: object, **options: object) -> list[Cell]:
    """The distinct cells of a request."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        return list(ps.prepare(model, *arguments, **options).plan.cells)  # type: ignore[arg-type]


def same(fast: Result, slow: Result) -> bool:
    """Equal up to the reference's first near-tie (rule 9)."""
    n = next((step for step, gap in enumerate(slow.gaps) if gap < oracle.NEAR_TIE), None)
    return fast.token_ids[:n] == slow.token_ids[:n]


def test_engine_equals_reference_on_smollm2(smol: Model) -> None:
    """Prompts of unequal length and every control, in small batches and in one."""
    cells = cells_of(
        smol,
        ["I went to Spain", "I went to Japan", "the city of New York"],
        prompt=["entity-description", "The capital city of {} is"],
        source_layers=[0, 7, 30],
        max_new_tokens=5,
        controls=ALL_CONTROLS,
    )
    slow = run_cells(smol, Reference(smol), cells, AMPLE)
    for max_rows in (3, 256):
        fast = run_cells(smol, Engine(smol), cells, Budget(2**32, max_rows))
        assert [i for i in range(len(cells)) if not same(fast[i], slow[i])] == []


def test_engine_equals_reference_on_gemma3(gemma: Model) -> None:
    cells = cells_of(gemma, SOURCES[:3], source_layers=[0, 6, 18], max_new_tokens=4, controls=ALL_CONTROLS)
    fast = run_cells(gemma, Engine(gemma), cells, AMPLE)
    slow = run_cells(gemma, Reference(gemma), cells, AMPLE)
    assert [i for i in range(len(cells)) if not same(fast[i], slow[i])] == []


def test_next_token_log_probabilities_agree(smol: Model) -> None:
    cells = cells_of(
        smol, NAME, prompt="token-identity", readout="next-token", source_layers=range(0, 31, 10), target_layers=[1, 15]
    )
    fast, slow = run_cells(smol, Engine(smol), cells, AMPLE), run_cells(smol, Reference(smol), cells, AMPLE)
    for a, b in zip(fast, slow, strict=True):
        assert a.top is not None
        assert b.top is not None
        assert [top.logprob for top in a.top] == pytest.approx([top.logprob for top in b.top], abs=1e-3)
        assert a.entropy == pytest.approx(b.entropy, abs=1e-3)


def test_what_the_layers_say_of_diana_is_what_was_published(smol: Model) -> None:
    """On SmolLM2-135M layers 1 to 3 say a country in the United Kingdom, layer 4 British monarch."""
    texts = [row.text or "" for row in ps.inspect(smol, NAME, source_layers="1-4", controls=())]
    assert all("Country in the United Kingdom" in text for text in texts[:3])
    assert "British monarch" in texts[3]


def test_15_times_as_fast_per_cell_as_one_at_a_time(smol: Model) -> None:
    """All layers of 8 sources, 20 new tokens, against a source pass and a cached `generate` with a hook per cell."""
    cells = cells_of(smol, SOURCES, controls=())
    run_cells(smol, Engine(smol), cells[:8], AMPLE)
    ratios = []
    for repeat in range(3):
        start = time.perf_counter()
        fast = run_cells(smol, Engine(smol), cells, AMPLE)
        engine_s = (time.perf_counter() - start) / len(cells)
        sample = range(17 + repeat, len(cells), len(cells) // 4)
        start = time.perf_counter()
        official = [one_cell(smol, cells[i]) for i in sample]
        ratios.append((time.perf_counter() - start) / len(official) / engine_s)
        agreeing = [fast[i].token_ids == tokens for i, tokens in zip(sample, official, strict=True)]
        assert sum(agreeing) >= len(agreeing) - 1, "a near-tie may part two at the most"
    assert statistics.median(ratios) >= 15, ratios


def one_cell(model: Model, cell: Cell) -> tuple[int, ...]:
    assert cell.write is not None
    state = cell.write.vectors[0]
    assert isinstance(state, State)
    what = oracle.Source(state.ids, state.position, state.layer)
    target = oracle.Target(cell.target_ids, cell.write.positions, cell.write.site.layer)
    return oracle.hook_generate(model.hf, what, target, max_new_tokens=cell.decoding.max_new_tokens)


def test_a_one_token_source_at_layer_0_is_the_token_itself(smol: Model) -> None:
    """Rotary: the state of a bare "cat" at 0 → 0 reads as the prompt with "cat" in the placeholder's stead."""
    (source,) = smol.tokenizer(" cat")["input_ids"]
    written = cells_of(smol, " cat", prompt="The color of {} is", source_layers=0, controls=(), readout="next-token")[0]
    assert written.write is not None
    swapped = [source if i in written.write.positions else id for i, id in enumerate(written.target_ids)]
    fast = run_cells(smol, Engine(smol), [written], AMPLE)[0]
    logprobs = smol.next_logits(torch.tensor([swapped])).log_softmax(-1)[0]
    assert fast.top is not None
    assert [top.logprob for top in fast.top] == pytest.approx(
        [float(logprobs[top.token_id]) for top in fast.top], abs=1e-3
    )


LOAD_TIMED = """
import hashlib, json, time, torch
import patchscopes as ps

def fixed_work():
    fresh = torch.ones(64 << 20)
    hashlib.sha256(fresh.numpy()).digest()
    square = torch.ones(1024, 1024)
    for _ in range(12):
        square @ square
    json.loads(json.dumps({str(i): i for i in range(200_000)}))

def seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start

ps.load  # imports torch and transformers
print(seconds(fixed_work), seconds(lambda: ps.load("smollm2-135m")))
"""


def test_a_later_load_takes_under_3_seconds(smol: Model) -> None:
    """Of one processor's, where work of the kinds that a load does (memory, hashing, products, JSON) takes one.

    On two idle cores that work takes 1.1 s and a load 2.2 to 2.5; a slower or busier machine is given more. In a new
    process each time, imports apart; the best of three.
    """
    command, threads = [sys.executable, "-c", LOAD_TIMED], {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=threads) for _ in range(3)]
    assert all(run.stderr == "" for run in runs), "a library does not print"
    times = [tuple(map(float, run.stdout.split())) for run in runs]
    assert min(load / max(1, work) for work, load in times) < 3, times


def test_both_models_pass_the_whole_self_check(smol: Model, gemma: Model) -> None:
    from patchscopes.selfcheck import check_model

    for model in (smol, gemma):
        report = check_model(model)
        assert report.passed, report
        assert all(finding.deviation < 1e-4 for finding in report.findings if finding.claim in ("self-write", "lens"))


def test_selfie_chat_prompt_on_a_chat_model_and_not_on_a_base_model(smol: Model, gemma: Model) -> None:
    results = ps.inspect(
        smol, "I went to Spain", at="Spain", prompt="selfie", source_layers=5, target_layers=2, controls=()
    )
    assert len(results[0].target_positions) == 5
    assert results[0].text
    with pytest.raises(ps.PatchscopesError, match="has no chat template"):
        ps.inspect(gemma, "I went to Spain", prompt="selfie")


def test_gemma_gets_its_bos(gemma: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = ps.inspect(gemma, "Spain", source_layers=3, controls=(), max_new_tokens=2)[0]
    assert (row.position, row.flags) == (1, ())
    with pytest.warns(ps.PatchscopesWarning, match="needs a BOS"):
        ps.inspect(gemma, "I went to Spain", bos="never", source_layers=3, controls=(), max_new_tokens=2)
