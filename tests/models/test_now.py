"""What a model is now: which changes are seen, what is attached, and the identities that follow."""

import copy
import random
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict, deque
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import changes
import families
import patchscopes as ps
from patchscopes import errors, guard, proof
from patchscopes.guard import Guard
from patchscopes.kv import sharing
from patchscopes.mappings import Transfer
from patchscopes.models import Model, attached, probes, wrap_in_memory
from patchscopes.models import hasher as hasher_room
from patchscopes.models.hasher import Hasher
from patchscopes.models.probes import Probes, words_of

PROMPT = "cat -> cat; {} ->"


def own(family: str = "llama") -> Model:
    return wrap_in_memory(copy.deepcopy(families.build(family)), families.tiny_tokenizer())


def look(model: Model, **options: Any) -> ps.Results:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.errors.PatchscopesWarning)
        return ps.inspect(model, "the cat", prompt=PROMPT, source_layers=1, max_new_tokens=2, controls=(), **options)


# ------------------------------------------------------------------------------------------------------------ structure


@pytest.mark.parametrize("family", families.FAMILIES)
def test_nothing_differs_before_and_after_a_run(family: str) -> None:
    model = own(family)
    assert model.current()
    look(model)
    assert model.changes() == []
    assert (model.epoch, model.attached) == (0, ())


@pytest.mark.parametrize("name", changes.EDITS)
def test_each_edit_is_seen_and_named(name: str) -> None:
    model = own()
    changes.EDITS[name](model.hf)
    assert model.changes()
    assert not model.current()
    assert model.current(), "it is taken as it is"


def test_what_transformers_notes_for_itself_is_no_change() -> None:
    model = own()
    ids = torch.tensor([[17, 33, 60]])
    model.hf(ids, output_hidden_states=True)
    model.hf(ids, use_cache=True)
    assert model.changes() == []
    assert model.attached == ()


def test_hooks_may_set_what_they_like_on_their_own_module() -> None:
    """A counter and the last output, as recorders keep them: neither is a change during a run."""

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        module.seen = getattr(module, "seen", 0) + 1  # type: ignore[assignment]
        module.last = output

    model = own()
    model.hf.get_submodule("model.layers.1.mlp").register_forward_hook(record)
    look(model)
    assert model.hf.get_submodule("model.layers.1.mlp").seen > 2
    assert all(row.status == "ok" for row in look(model))


def test_functions_and_classes_that_are_replaced_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    model = own()
    before = look(model)
    rotated = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: rotated(-q, 2 * k, *rest))
    assert [change.text for change in model.changes()] == [
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb was replaced"
    ]
    after = look(model)
    assert after[0].token_ids == look(own())[0].token_ids != before[0].token_ids
    monkeypatch.undo()
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: -forward(self, x))
    assert look(model)[0].token_ids == look(own())[0].token_ids != before[0].token_ids


def test_numbers_that_are_not_numbers_are_refused_each_time_until_they_are_mended() -> None:
    model = own()
    weight: Any = model.hf.get_submodule("model.layers.1.mlp.up_proj").weight
    before = float(weight[0, 0])
    weight.data[0, 0] = float("nan")
    for _ in range(2):
        with pytest.raises(errors.UnsupportedModelError, match=r"NaN or infinity.*up_proj"):
            look(model)
    weight.data[0, 0] = before
    assert look(model)[0].status == "ok"


def test_blocks_that_the_cache_would_confuse_are_refused_after_a_change_too() -> None:
    model = own()
    layers: Any = model.hf.get_submodule("model.layers")
    third, layers[2] = layers[2], layers[1]
    for _ in range(2):
        with pytest.raises(errors.UnsupportedModelError, match="one block at two places"):
            look(model)
    layers[2] = third
    assert look(model)[0].status == "ok"


# -------------------------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("shape", [(300, 512), (512, 300), (4, 70, 96), (97, 331), (2000, 64), (64, 3000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_a_row_or_a_column_that_changes_is_seen_at_every_look(
    shape: tuple[int, ...], dtype: torch.dtype, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SMALL_BYTES", 0)
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor = made.transpose(-1, -2).contiguous().transpose(-1, -2) if turned else made
    seen = Probes({"w": tensor})
    for _ in range(2 * probes.SETS):
        assert list(seen.changes()) == []
    rows, columns = shape[-2:]
    for place in ((..., rows // 3, slice(None)), (..., slice(None), columns // 2), (..., rows - 1, slice(None))):
        kept = tensor[place].clone()
        tensor[place] += 1
        for _ in range(probes.SETS):
            assert list(seen.changes())
        tensor[place] = kept
        assert list(seen.changes()) == []
    tensor[..., 7, 9] += 1
    assert seen.hash_changes() == [], "the first hash is what later ones are compared with"
    tensor[..., 5, 9] += 1
    assert seen.hash_changes() == ["values of w changed"]


def test_small_models_are_kept_whole() -> None:
    model = own()
    model.hf.get_submodule("model.layers.2.mlp.down_proj").weight.data[3, 5] += 1e-6  # type: ignore[index,operator,union-attr]
    assert [change.text for change in model.changes()] == [
        "values of model.layers.2.mlp.down_proj.weight changed without a trace in Python (as through .data)"
    ]


def test_tensors_without_words_have_none() -> None:
    assert words_of(torch.empty(3, device="meta")) is None
    assert words_of(torch.empty(0)) is None
    with torch.inference_mode():
        inference = torch.ones(3, 5)
    assert words_of(inference) is not None
    assert Probes({"a": torch.empty(2, device="meta")}).n_bytes == 0


# -------------------------------------------------------------------------------------------------------------- a guard


def test_numbers_are_compared_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    watching = Guard(Transfer.of(model), [0], compares=True)
    watching.hold([], kept=False)
    monkeypatch.setattr(guard, "NUMBERS_EVERY_S", 0.0)
    monkeypatch.setattr(proof, "largest_error", lambda _: 1.0)
    with pytest.raises(errors.ModelChangedError, match=r"differ by 1 nats from its own forward's"):
        watching.hold([], kept=False)


def test_what_stands_in_is_given_up_where_it_is_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    errors_seen = iter([1.0, 0.0])
    monkeypatch.setattr(proof, "largest_error", lambda _: next(errors_seen))
    proof.prove(model)
    from patchscopes.compute import compute_of

    assert compute_of(model).forwards == {}


def test_an_attention_that_is_exchanged_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours no longer stands for it, so that rows copy their prefix; the plan knows that."""
    from transformers.models.llama import modeling_llama

    hf = copy.deepcopy(families.build("llama"))
    hf.set_attn_implementation("eager")
    model = wrap_in_memory(hf, families.tiny_tokenizer())
    before = look(model)
    original = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama,
        "eager_attention_forward",
        lambda module, q, *rest, **options: original(module, 3 * q, *rest, **options),
    )
    after = look(model)
    assert sharing(model) == "copied"
    assert after[0].token_ids == look(model, runner="reference")[0].token_ids != before[0].token_ids


def test_what_ours_refuses_is_found_out_again_after_a_change() -> None:
    """At load a model with sinks copies prefixes; so it does when it is taken anew, in every dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        model = own()
        model.hf.to(dtype)
        refusing = _Refusing()
        for block in model.hf.get_submodule("model.layers"):
            block.self_attn.forward = partial(refusing, block.self_attn)  # type: ignore[operator,union-attr]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attached, "_all", lambda *_: iter(()))  # as if the family were so
            assert look(model)[0].status == "ok"
            assert sharing(model) == "copied"
            model.refresh()
            assert look(model)[0].status == "ok"


class _Refusing:
    """Attention that hands over sinks, which ours does not know and the model's own leaves alone."""

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if module.config._attn_implementation == "patchscopes":
            kwargs["s_aux"] = torch.zeros(4)
        return type(module).forward(module, *args, **kwargs)


def test_all_of_the_content_is_hashed_where_a_run_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SMALL_BYTES", 0)
    monkeypatch.setattr(probes, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probes, "HASH_BYTES_PER_S", 1e15)
    model = own()
    watching = Guard(Transfer.of(model), [0], compares=False)
    watching.hold([], kept=False)
    weight: Any = model.hf.get_submodule("model.layers.1.mlp.up_proj").weight
    unseen = next(
        (row, column)
        for row in range(weight.shape[0])
        for column in range(weight.shape[1])
        if not _sampled(model, weight, row * weight.shape[1] + column)
    )
    weight.data[unseen] += 1
    assert model.changes() == [], "it lies between the samples"
    with pytest.raises(errors.ModelChangedError, match=r"values of model\.layers\.1\.mlp\.up_proj\.weight changed"):
        watching.hold([], kept=False)
    assert not model.current(), "and the next call takes it as it is"
    assert model.current()


def _sampled(model: Model, weight: Tensor, flat: int) -> bool:
    samples = [one for sets in model.watch.probes._sets for set_ in sets for one in set_._samples]
    here = [one for one in samples if one.words.data_ptr() == weight.data_ptr()]
    assert here
    return any(flat // 2 in one.places.tolist() for one in here)


def test_refresh_takes_what_no_look_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SMALL_BYTES", 0)
    monkeypatch.setattr(probes, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probes, "HASH_BYTES_PER_S", 1.0)
    model = own()
    before = look(model)[0].cell
    weight: Any = model.hf.get_submodule("model.layers.1.mlp.up_proj").weight
    flat = next(k for k in range(weight.numel()) if not _sampled(model, weight, k))
    weight.data.view(-1)[flat] += 1
    assert look(model)[0].cell == before
    model.refresh()
    assert look(model)[0].cell != before


def test_nothing_of_a_config_outlives_its_change() -> None:
    model = own("mistral")
    assert (model.window, model.eos_ids) == (families.WINDOW, frozenset())
    model.hf.config.sliding_window = 7
    model.hf.generation_config.eos_token_id = 5
    model.current()
    assert (model.window, model.eos_ids) == (7, frozenset({5}))


# ----------------------------------------------------------------------------------------------------------- identities


def steer(by: Any, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output + by


def hooked(hook: Any) -> Model:
    model = own()
    model.hf.get_submodule("model.layers.1").register_forward_hook(hook)
    model.current()
    return model


def test_identities_follow_what_a_hook_closes_over() -> None:
    plain = own().identity
    one, other = hooked(partial(steer, 1.0)).identity, hooked(partial(steer, 2.0)).identity
    assert len({plain, one, other}) == 3
    assert one == hooked(partial(steer, 1.0)).identity
    vector = torch.zeros(32)
    model = hooked(lambda _, __, output: output + vector)
    before = model.identity
    vector[3] = 1.0
    assert not model.current()
    assert model.identity != before
    assert one.startswith(plain)


SCRIPT = """
import sys; sys.path[:0] = ["tests"]
import torch, families, copy
from patchscopes.models import wrap_in_memory
hf = copy.deepcopy(families.build("llama"))
vector, names = torch.arange(32.0), {"b", "a", "c", "d"}
hf.model.layers[1].register_forward_hook(
    lambda module, args, output: output + vector if len(names) in {4, "x", "y"} else output
)
model = wrap_in_memory(hf, families.tiny_tokenizer())
print(model.identity, model.unhashed)
"""


def test_what_can_be_hashed_has_the_same_identity_in_another_process() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert "|attached:" in runs[0]
    assert runs[0].endswith("()\n")


def test_what_cannot_be_hashed_is_refused_by_a_run_directory_unless_it_is_named(tmp_path: Path) -> None:
    numbers = iter(range(10**9))
    model = hooked(lambda _, __, output: output + 0 * next(numbers))
    assert not model.attached[0].hashed
    with pytest.raises(errors.OptionError, match=r"hook .* on model\.layers\.1.*cannot be hashed.*variant="):
        look(model, run=tmp_path / "run")
    first = look(model, run=tmp_path / "run", variant="counting")
    assert first[0].cell == look(model, run=tmp_path / "run", variant="counting")[0].cell
    with pytest.raises(errors.RunChangedError, match="variant"):
        look(model, run=tmp_path / "run", variant="another")
    assert look(own(), variant="counting")[0].cell != look(own())[0].cell
    with pytest.raises(errors.OptionError, match=r"variant is 'a\|b'"):
        look(model, variant="a|b")


def test_a_changed_structure_is_in_the_identity_and_gone_when_it_is_put_back() -> None:
    model = own()
    before = model.identity
    norm: Any = model.hf.get_submodule("model.layers.1.input_layernorm")
    epsilon, norm.variance_epsilon = norm.variance_epsilon, 0.5
    model.current()
    assert "|structure:" in model.identity
    norm.variance_epsilon = epsilon
    model.current()
    assert model.identity == before


def test_a_run_directory_refuses_another_model_and_says_what_differs(tmp_path: Path) -> None:
    model = own()
    look(model, run=tmp_path / "run")
    handle = model.hf.get_submodule("model.layers.1").register_forward_hook(partial(steer, 1.0))
    with pytest.raises(errors.RunChangedError, match=r"model\.attached: nothing there"):
        look(model, run=tmp_path / "run")
    handle.remove()
    look(model, run=tmp_path / "run")
    model.hf.get_submodule("lm_head").weight.data.neg_()  # type: ignore[operator,union-attr]
    with pytest.raises(errors.RunChangedError, match=r"model\.weights: "):
        look(model, run=tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "hashed"),
    [
        (1.5, True),
        ([1, "a", None, {"b": (2, 3)}], True),
        (torch.arange(3), True),
        (nn.Linear(2, 2), True),
        (partial(steer, 2), True),
        (random.Random(0), True),
        (OrderedDict(a=deque([1], maxlen=3)), True),
        (iter([1]), False),
        (threading.Lock(), False),
        (torch.empty(2, device="meta"), False),
    ],
)
def test_numbers_texts_tensors_and_what_holds_them_are_hashed(value: Any, hashed: bool) -> None:
    hasher = Hasher()
    hasher.add(value)
    assert hasher.complete == hashed


def test_what_a_recorder_has_gathered_is_not_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hasher_room, "MAX_BYTES", 100)
    hasher = Hasher()
    hasher.add([torch.zeros(20), torch.zeros(20)])
    assert not hasher.complete


def test_things_that_hold_each_other_are_hashed_once() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    hasher = Hasher()
    hasher.add(loop)
    assert hasher.complete


def test_masks_of_pruning_are_attached_and_hooks_of_torch_and_accelerate_are_not() -> None:
    import accelerate

    model = own()
    changes.pruned(model.hf)
    assert [one.what for one in attached.attached(model.hf)] == ["hook"]
    hf = copy.deepcopy(families.build("llama"))
    accelerate.cpu_offload(hf, execution_device=torch.device("cpu"))
    assert attached.attached(hf) == ()
    assert wrap_in_memory(hf, families.tiny_tokenizer()).identity == own().identity


def test_a_module_of_the_same_class_and_sizes_brings_other_weights() -> None:
    model = own()
    before = model.identity
    mlp: Any = model.hf.get_submodule("model.layers.1.mlp")
    mlp.up_proj = copy.deepcopy(mlp.up_proj)
    mlp.up_proj.weight.data.neg_()
    model.current()
    assert model.fingerprint.split("|")[0] != before.split("|")[0]


def test_what_torch_compile_wraps_keeps_its_identity() -> None:
    model = own()
    before = model.identity
    layers: Any = model.hf.get_submodule("model.layers")
    layers[1] = torch.compile(layers[1], backend="eager")
    model.hf.compile(backend="eager")
    assert not model.current()
    assert model.identity == before


def test_long_lists_are_hashed_at_once_and_endless_ones_are_not_followed() -> None:
    numbers = list(range(100_000))
    found = []
    for other in (numbers, [*numbers[:-1], 0], [*numbers, object()]):
        hasher = Hasher()
        hasher.add(other)
        found.append((hasher.digest(), hasher.complete))
    assert found[0][0] != found[1][0]
    assert [complete for _, complete in found] == [True, True, False]


def test_rows_and_columns_of_tensors_with_gaps_are_seen_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SMALL_BYTES", 0)
    monkeypatch.setattr(probes, "WHOLE_BYTES", 0)
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.randn(90, 140, generator=torch.Generator().manual_seed(0)).to(dtype)[:, 4:100]
        looking = Probes({"weight": tensor})
        for _ in range(5):
            assert not list(looking.changes())
            for part in (tensor[17], tensor[:, 31]):
                before = part.clone()
                part.data.neg_()
                assert list(looking.changes())
                part.data.copy_(before)
