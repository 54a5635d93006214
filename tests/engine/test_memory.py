"""What a run allocates is no more than its plan says, and the plan keeps within the budget.

Counted where PyTorch allocates, so that it is the same on every machine: all that stands beside the weights.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch.profiler import ProfilerActivity, profile

import families
from patchscopes.engine import Engine
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native
from patchscopes.models import Model, wrap_in_memory
from patchscopes.plan import Budget, Plan, compile_plan
from patchscopes.run import shape_of
from patchscopes.spec import Cell, Decoding, Ids, Readout, Site, State, Write

MIB = 2**20
D_VOCAB = 151_936  # Qwen's


def made(config: Any, dtype: torch.dtype, *, attention: str | None = None) -> Model:
    more = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **more)
    return wrap_in_memory(model.eval().requires_grad_(False).to(dtype), families.tiny_tokenizer())


def llama(d_vocab: int, *, n_heads: int = 4, kind: Any = hf.LlamaConfig, **more: Any) -> Any:
    sizes = {
        "hidden_size": 8 * n_heads,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": n_heads,
    }
    sizes |= {"num_key_value_heads": n_heads // 2, "max_position_embeddings": 2048, "vocab_size": d_vocab}
    return kind(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0, **more)


def cells(model: Model, n: int, readout: Readout, *, at: int = 2, length: int = 4, source: int = 3) -> list[Cell]:
    """`n` cells on one prompt of `length` tokens, written at `at`, from sources of `source` tokens."""
    prompt = tuple(5 + k % 60 for k in range(length))
    return [
        Cell(
            model.identity,
            model.dtype_name,
            prompt,
            Write(Site(1), (at,), (State(source_ids(k, source), 1, 1),)),
            readout,
            Decoding(4),
        )
        for k in range(n)
    ]


def source_ids(k: int, length: int) -> Ids:
    return tuple(20 + k // 50 ** (at % 3) % 50 for at in range(length))


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that stood allocated at once while `run` ran, beside what stood before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert events
    return most


def check(model: Model, some: list[Cell], budget_mib: int) -> Plan:
    plan = compile_plan(some, shape_of(model), Budget(budget_mib * MIB))
    list(Engine(model).run(plan))  # what is made once for a model, such as packed weights, is not the run's
    most = allocated(lambda: list(Engine(model).run(plan)))
    assert most <= plan.cost.peak_bytes <= budget_mib * MIB
    return plan


NEXT, TEXT = Readout("next-token"), Readout("text")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_large_vocabulary_is_read_a_chunk_at_a_time_in_every_dtype(dtype: torch.dtype) -> None:
    """420 rows of whole logits are 244 MiB in float32, and 122 more in bfloat16."""
    model = made(llama(D_VOCAB), dtype)
    plan = check(model, cells(model, 420, NEXT), 256)
    assert plan.waves[0].groups[0].n_rows == 420
    compared = [replace(cell, compare=State(source_ids(k, 3), 2, 2)) for k, cell in enumerate(cells(model, 420, NEXT))]
    check(model, compared, 256)


def test_a_head_with_a_hook_makes_all_logits_at_once_and_they_are_counted() -> None:
    model = made(llama(D_VOCAB), torch.bfloat16)
    handle = model.hf.get_output_embeddings().register_forward_hook(lambda *_: None)
    try:
        plan = check(model, cells(model, 90, NEXT), 256)
    finally:
        handle.remove()
    assert plan.waves[0].groups[0].n_rows < 90


def test_logits_that_are_drawn_from_are_counted() -> None:
    model = made(llama(D_VOCAB), torch.bfloat16)
    drawn = [replace(cell, decoding=Decoding(2, temperature=1.0)) for cell in cells(model, 70, TEXT)]
    for budget_mib in (192, 48):
        check(model, drawn, budget_mib)
    wide, tight = (compile_plan(drawn, shape_of(model), Budget(mib * MIB)).waves[0].groups[0] for mib in (192, 48))
    assert tight.n_rows < wide.n_rows == 70


def test_many_likely_tokens_and_many_candidates_are_counted() -> None:
    model = made(llama(4_000), torch.bfloat16)
    check(model, cells(model, 12, Readout("next-token", 1000)), 48)
    answers = tuple((5 + k % 60,) * (1 + k % 7) for k in range(30))
    scored = [replace(cell, candidates=answers) for cell in cells(model, 12, Readout("candidates"))]
    check(model, scored, 64)
    check(model, scored[:1], 64)


@pytest.mark.parametrize(
    ("at", "kind"),
    [(400, hf.LlamaConfig), (250, hf.LlamaConfig), (250, hf.MistralConfig), (400, hf.Gemma2Config)],
    ids=["long prefix", "long suffix", "window", "soft cap"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_of_plain_attention_are_counted(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, at: int, kind: Any
) -> None:
    """Off float32, and where there is no kernel, they stand in memory: (rows, heads, columns, tokens)."""
    if dtype == torch.float32:
        monkeypatch.setattr(ops, "native", lambda: Native(None, "switched off"))
    more: dict[str, Any] = {"sliding_window": 100} if kind is hf.MistralConfig else {}
    if kind is hf.Gemma2Config:
        more = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
    model = made(llama(300, n_heads=16, kind=kind, **more), dtype)
    check(model, cells(model, 16, TEXT, at=at, length=402), 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scores_of_the_models_own_attention_are_counted(dtype: torch.dtype, attention: str) -> None:
    model = made(llama(300, n_heads=8), dtype, attention=attention)
    check(model, cells(model, 4, NEXT, source=500), 128)
    masked = [replace(cell, write=masked_write(cell)) for cell in cells(model, 4, NEXT, source=500)]
    check(model, masked, 128)


def masked_write(cell: Cell) -> Write:
    assert cell.write is not None
    (vector,) = cell.write.vectors
    assert isinstance(vector, State)
    return replace(cell.write, vectors=(replace(vector, masked=(0,)),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_copied_prefixes_and_their_scores_are_counted(dtype: torch.dtype) -> None:
    config = hf.BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=16)
    model = made(config, dtype)
    check(model, cells(model, 60, TEXT, at=200, length=202), 96)


def test_many_prompts_run_as_many_at_once_as_the_budget_holds() -> None:
    model = made(llama(300, n_heads=32), torch.float32)
    some = []
    for k in range(30):
        (one,) = cells(model, 1, TEXT, at=30, length=40)
        some.append(replace(one, target_ids=(70 + k, *one.target_ids[1:])))
    tight = check(model, some, 16)
    assert tight.waves[0].prompt_tokens < compile_plan(some, shape_of(model), Budget(256 * MIB)).waves[0].prompt_tokens
