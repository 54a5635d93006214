"""Rule 0 beside others: other threads, streams and processes, and what the caller has switched on around a call."""

import asyncio
import copy
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import families
import patchscopes as ps
from patchscopes import guard
from patchscopes.errors import ModelChangedError, PatchscopesWarning, UnsupportedModelError
from patchscopes.models import Model

PROMPT = "cat -> cat; hello -> hello; {} ->"
SOURCES = ("the capital of Spain", "hello the cat is Wales")
IDS = torch.tensor([[17, 33, 60, 21, 45, 70, 19], [80, 41, 27, 50, 11, 12, 13]])
TIMES = 1000


def own(family: str = "llama") -> PreTrainedModel:
    return copy.deepcopy(families.build(family))


def loaded(hf: Any, **options: Any) -> Model:
    return ps.load(hf, tokenizer=families.tiny_tokenizer(), **options)


def look(model: Model, source: str = SOURCES[0], **options: Any) -> list[tuple[Any, ...]]:
    given: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 6, "controls": ("unpatched",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PatchscopesWarning)
        return said(ps.inspect(model, source, **(given | options)))


def said(rows: Any) -> list[tuple[Any, ...]]:
    return [(row.control, row.source_layer, row.target_layer, row.token_ids, row.status) for row in rows]


class Beside(threading.Thread):
    """Does something again and again, beside what the test does; keeps what went wrong."""

    def __init__(self, act: Callable[[], object], times: int | None = None) -> None:
        super().__init__()
        self._act, self._times = act, times
        self.done, self.errors = 0, list[BaseException]()
        self.over = threading.Event()

    def run(self) -> None:
        try:
            while not self.over.is_set() and (self._times is None or self.done < self._times):
                self._act()
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            self.errors.append(error)
        finally:
            self.over.set()


@contextmanager
def beside(act: Callable[[], object], times: int | None = None) -> Iterator[Beside]:
    thread = Beside(act, times)
    thread.start()
    try:
        yield thread
    finally:
        if times is None:
            thread.over.set()
        thread.join()
    assert not thread.errors, thread.errors


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mixtral"])
def test_two_threads_on_one_model_have_each_their_own_rows(family: str) -> None:
    model = loaded(own(family))
    alone = {source: look(model, source) for source in SOURCES}

    def act() -> None:
        assert look(model, SOURCES[1]) == alone[SOURCES[1]]

    with beside(act, 25):
        for _ in range(25):
            assert look(model, SOURCES[0]) == alone[SOURCES[0]]


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_a_thread_that_calls_the_model_sees_nothing_of_a_run(runner: str) -> None:
    hf = own()
    model = loaded(hf)
    alone, rows = hf(IDS).logits, look(model, runner=runner)

    def act() -> None:
        assert torch.equal(hf(IDS).logits, alone)

    with beside(act, TIMES) as thread:
        while not thread.over.is_set():
            assert look(model, runner=runner) == rows


def trained(hf: PreTrainedModel) -> list[Tensor]:
    hf.zero_grad()
    hf(IDS, labels=IDS).loss.backward()
    return [parameter.grad.clone() for parameter in hf.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_a_thread_that_trains_has_the_gradients_that_it_has_alone(runner: str) -> None:
    hf = own().requires_grad_()
    model = loaded(hf)
    alone, rows = trained(hf), look(model, runner=runner)

    def act() -> None:
        assert all(torch.equal(a, b) for a, b in zip(trained(hf), alone, strict=True))

    with beside(act, TIMES) as thread:
        while not thread.over.is_set():
            assert look(model, runner=runner) == rows


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_nothing_of_the_model_is_changed_while_it_runs(runner: str) -> None:
    """Neither modules, nor hooks, configs and functions of transformers, at any row of a run."""
    hf = own()
    model = loaded(hf)
    look(model, runner=runner)
    before = everything(hf)
    for _ in ps.stream(model, SOURCES, prompt=PROMPT, controls=(), runner=runner, memory_bytes=2**20):
        assert everything(hf) == before
    seen: list[bool] = []
    handle = hf.get_submodule("model.layers.1").register_forward_hook(lambda *_: seen.append(everything(hf) == inside))
    inside = everything(hf)
    look(model, runner=runner)
    handle.remove()
    assert seen
    assert all(seen), "nor while a pass runs"


def everything(hf: PreTrainedModel) -> list[Any]:
    from transformers.models.llama import modeling_llama

    modules = [
        (id(module), sorted(module.__dict__), [id(value) for value in module.__dict__.values()], list(table))
        for module in hf.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks, module._modules)
    ]
    return [modules, dict(vars(hf.config)), modeling_llama.apply_rotary_pos_emb]


def test_weights_that_change_during_a_run_end_it_and_say_which_rows_are_of_neither(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SHARE", 1e9)
    monkeypatch.setattr(guard, "MIN_INTERVAL_S", 0.0)  # a look is due at every row, and what it holds good is kept
    hf = own()
    model = loaded(hf)
    options: dict[str, Any] = {"prompt": PROMPT, "controls": (), "max_new_tokens": 6, "run": tmp_path / "run"}
    stream = ps.stream(model, [f"the cat {i} is Spain" for i in range(60)], **options)
    for _ in range(20):
        next(stream)
    monkeypatch.setattr(guard, "MIN_INTERVAL_S", 1e9)  # none is from here on
    next(stream)
    hf.get_submodule("lm_head").weight.data.neg_()  # type: ignore[operator,union-attr]
    with pytest.raises(ModelChangedError, match=r"lm_head.*Rows \d.* were given since.*not kept"):
        list(stream)
    with pytest.raises(ps.errors.RunChangedError, match="weights"):
        look(model, **options)


def test_the_model_is_looked_at_between_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change at the end of one wave is told before any row of the next is run, however short both are."""
    monkeypatch.setattr(guard, "MIN_INTERVAL_S", 1e9)  # no look is due by the clock
    model = loaded(own())
    sources = [f"the cat {i} is Spain" for i in range(40)]
    prepared = ps.prepare(model, sources, prompt=PROMPT, controls=(), max_new_tokens=2, memory_bytes=200_000)
    first, *others = (sum(len(group.cells) for group in wave.groups) for wave in prepared.plan.waves)
    assert others
    rows = (row for _, row in prepared.rows() if row.status == "ok")
    assert len(list(islice(rows, first))) == first
    model.hf.get_submodule("lm_head").weight.data.neg_()  # type: ignore[operator,union-attr]
    with pytest.raises(ModelChangedError, match="lm_head"):
        next(rows)


def test_a_change_that_another_call_meets_first_ends_the_run_all_the_same() -> None:
    model = loaded(own())
    sources = [f"the cat {i} is Spain" for i in range(40)]
    stream = ps.stream(model, sources, prompt=PROMPT, controls=(), max_new_tokens=2)
    next(stream)
    model.hf.get_submodule("lm_head").weight.data.neg_()  # type: ignore[operator,union-attr]
    look(model)
    with pytest.raises(ModelChangedError, match="another call has met it"):
        list(stream)


def test_a_model_that_changed_before_the_first_row_runs_as_it_is_by_then() -> None:
    hf = own()
    model = loaded(hf)
    prepared = ps.prepare(model, SOURCES[0], prompt=PROMPT, max_new_tokens=6, controls=("unpatched",))
    old = {request.cell.identity() for request in prepared.requests if request.cell is not None}
    hf.get_submodule("lm_head").weight.data.neg_()  # type: ignore[operator,union-attr]
    results = prepared.results()
    assert said(results) == look(loaded(copy.deepcopy(hf)))
    assert not old & {row.cell for row in results}


def test_training_mode_is_refused_and_the_module_named() -> None:
    hf = own("gpt2")
    model = loaded(hf)
    hf.get_submodule("transformer.h.1.mlp").train()
    with pytest.raises(UnsupportedModelError, match=r"training mode.*transformer\.h\.1\.mlp.*eval\(\)"):
        look(model)
    hf.eval()
    assert look(model)


# ------------------------------------------------------------------------------------------ streams, asyncio, processes


def test_streams_that_take_turns_and_one_that_is_left_alone() -> None:
    model = loaded(own())
    options: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 6, "controls": ("unpatched",)}
    alone = [look(model, source) for source in SOURCES]
    left = ps.stream(model, SOURCES[0], **options)
    next(left)
    found: list[list[Any]] = [[], []]
    streams = [ps.stream(model, source, **options) for source in SOURCES]
    while streams:
        for turn, stream in enumerate(list(streams)):
            row = next(stream, None)
            if row is None:
                streams.remove(stream)
            else:
                found[SOURCES.index(row.source) if row.source else turn].append(row)
    left.close()  # type: ignore[attr-defined]
    for rows, expected in zip(found, alone, strict=True):
        assert set(said(rows)) <= set(expected)
    assert sum(map(len, found)) == sum(map(len, alone))
    assert look(model) == alone[0]


def test_asyncio_runs_calls_in_threads_and_streams_in_turns() -> None:
    model = loaded(own())
    alone = [look(model, source) for source in SOURCES]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(look, model, source) for source in SOURCES * 4))

    assert asyncio.run(all_of_them()) == alone * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_runs_the_model_beside_its_parent() -> None:
    model = loaded(own())
    alone = look(model)

    def act() -> None:
        look(model)

    with beside(act):
        for _ in range(5):
            child = os.fork()
            if child == 0:
                same = False
                try:
                    same = look(model) == alone
                finally:
                    os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_computes_in_one_thread_where_more_would_wait_for_ever() -> None:
    script = """
import os, sys, warnings; sys.path[:0] = ["tests"]; warnings.simplefilter("ignore")
import copy, torch, families, patchscopes as ps
torch.set_num_threads(2)
model = ps.load(copy.deepcopy(families.build("llama")), tokenizer=families.tiny_tokenizer())
look = lambda: [row.token_ids for row in ps.inspect(model, "the cat", prompt="x {} ->", max_new_tokens=3)]
torch.randn(600, 600) @ torch.randn(600, 600)
alone = look()
child = os.fork()
if child == 0:
    os._exit(0 if look() == alone else 1)
sys.exit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------- the caller's context


def defaults(dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    @contextmanager
    def changed() -> Iterator[None]:
        torch.set_default_dtype(dtype or torch.float32)
        try:
            with torch.device(device) if device else nullcontext():
                yield
        finally:
            torch.set_default_dtype(torch.float32)

    return changed()


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bfloat16 by default": lambda: defaults(torch.bfloat16),
    "float64 by default": lambda: defaults(torch.float64),
    "meta by default": lambda: defaults(device="meta"),
    "high precision": lambda: precision("high"),
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon-alibi", "qwen3-moe"])
def test_rows_do_not_depend_on_what_the_caller_has_switched_on(name: str, family: str) -> None:
    hf = own(family)
    expected = look(loaded(own(family)))
    model = loaded(hf)
    options: dict[str, Any] = {"readout": "next-token", "controls": ("random", "random-state", "zero")}
    drawn = look(model, **options)
    dtype, device = torch.get_default_dtype(), torch.empty(0).device
    with CONTEXTS[name]():
        assert look(model) == expected, "engine"
        assert look(model, runner="reference") == expected, "reference"
        assert look(model, **options) == drawn
        assert look(loaded(own(family))) == expected, "loaded there"
    assert look(model) == expected, "afterwards"
    assert (torch.get_default_dtype(), torch.empty(0).device) == (dtype, device)


def test_streams_may_begin_in_one_mode_and_end_in_another() -> None:
    model = loaded(own())
    expected = look(model)
    with torch.inference_mode():
        stream = ps.stream(model, SOURCES[0], prompt=PROMPT, max_new_tokens=6, controls=("unpatched",))
        first = next(stream)
    assert set(said([first, *stream])) == set(expected)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("flag", ["return_dict", "output_hidden_states", "output_attentions", "use_cache"])
def test_flags_of_the_config_do_not_show(flag: str) -> None:
    hf = own()
    if flag == "output_attentions":
        hf.set_attn_implementation("eager")
    expected = look(loaded(copy.deepcopy(hf)))
    setattr(hf.config, flag, flag.startswith("output"))
    model = loaded(hf)
    assert look(model) == expected
    assert look(model, runner="reference") == expected
    assert getattr(hf.config, flag) == flag.startswith("output")


def its_forward(hf: PreTrainedModel) -> Any:
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


def in_place(hf: PreTrainedModel) -> Any:
    hf.compile(backend="eager")
    return hf


def blocks(hf: PreTrainedModel) -> Any:
    layers: Any = hf.get_submodule("model.layers")
    for index, block in enumerate(layers):
        layers[index] = torch.compile(block, backend="eager")
    return hf


@pytest.mark.parametrize("compiled", [its_forward, in_place, blocks])
def test_what_torch_compile_has_wrapped_is_run_as_it_is(compiled: Callable[[PreTrainedModel], Any]) -> None:
    expected = look(loaded(own()))
    before = loaded(compiled(own()))
    assert look(before) == expected
    assert look(before, runner="reference") == expected
    hf = own()
    model = loaded(hf)
    look(model)
    compiled(hf)
    assert look(model) == expected
    assert look(model, runner="reference") == expected
