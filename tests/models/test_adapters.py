"""Adapters on disk: with their base by name or without, through peft; what does not fit is told."""

import copy
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

import families
import patchscopes as ps
from cli_run import run
from patchscopes import errors
from patchscopes.models import LoadOptions, Model, load_by_name
from patchscopes.settings import Settings

# peft asks transformers in an old way whether gradients are checkpointed; the tests' own use of it, not the package's.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:Setting `save_embedding_layers`:UserWarning"
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
IDS = torch.tensor([[17, 33, 60]])


def trained(**options: Any) -> Any:
    """A tiny Llama with a LoRA that changes what it says, as peft has it."""
    import peft

    options = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options}
    wrapper = peft.get_peft_model(copy.deepcopy(families.build("llama")), peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapper.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return wrapper.eval()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "llama"
    families.build("llama").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A folder as peft's `save_pretrained` writes it, which names its base."""
    return saved(trained(), tmp_path / "adapter", str(base))


def saved(wrapper: Any, folder: Path, base: str) -> Path:
    for config in wrapper.peft_config.values():
        config.base_model_name_or_path = base
    wrapper.save_pretrained(folder)
    return folder


def load(name: object, adapter: object = None, **options: Any) -> Model:
    given = None if adapter is None else str(adapter)
    return load_by_name(str(name), LoadOptions(adapter=given, **options), Settings(Path("/nonexistent")))


def expected(wrapper: Any) -> torch.Tensor:
    with torch.no_grad():
        return wrapper(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"bias": "lora_only", "use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"task_type": None},
    ],
    ids=["lora", "dora", "bias", "modules-to-save", "embedding", "no-task"],
)
def test_what_runs_is_what_peft_runs(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wrapper = trained(**options)
    wanted = expected(wrapper)
    assert not torch.allclose(wanted, expected(families.build("llama")), atol=0.1)
    folder = saved(wrapper, tmp_path / "adapter", str(base))
    for model in (load(base, folder), load(folder)):
        assert torch.allclose(model.all_logits(IDS), wanted, atol=1e-5)
        assert not any(weight.requires_grad or module.training for module in model.hf.modules() for weight in
                       module.parameters(recurse=False))  # fmt: skip


def test_engine_and_reference_agree(base: Path, adapter: Path) -> None:
    model = ps.load(base, adapter=adapter)
    options: dict[str, Any] = {"prompt": "x {} ->", "max_new_tokens": 4, "source_layers": 2, "target_layers": "all"}
    found = [[row.text for row in ps.inspect(model, "the cat", runner=r, **options)] for r in ("engine", "reference")]
    assert found[0] == found[1]


def test_names_and_fingerprints_cover_base_and_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    both, alone, plain = load(base, adapter), load(adapter), load(base)
    assert (both.id, alone.id) == (f"{base} + {adapter}", str(adapter))
    assert both.fingerprint == alone.fingerprint
    assert len({both.fingerprint, plain.fingerprint}) == 2
    assert both.describe()["weights"] == both.fingerprint
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))
    assert load(base, other).fingerprint != both.fingerprint, "what scales it is in its config"
    weights = safetensors.torch.load_file(adapter / WEIGHTS)
    key = next(iter(weights))
    safetensors.torch.save_file({**weights, key: weights[key] + 1e-3}, adapter / WEIGHTS, metadata={"format": "pt"})
    assert load(base, adapter).fingerprint != both.fingerprint


def test_loading_one_leaves_the_callers_draws_alone(base: Path, adapter: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load(base, adapter)
    assert torch.equal(torch.rand(3), wanted)


def test_the_tokenizer_that_it_was_trained_with_is_its_own(base: Path, adapter: Path) -> None:
    assert load(adapter).tokenizer.bos_token_id == families.tiny_tokenizer().bos_token_id
    changed = copy.deepcopy(families.tiny_tokenizer())
    changed.chat_template = "{{ 'of the adapter' }}"
    changed.save_pretrained(adapter)
    assert load(adapter).tokenizer.chat_template == "{{ 'of the adapter' }}"
    given = load_by_name(str(adapter), LoadOptions(), Settings(base), tokenizer=families.tiny_tokenizer())
    assert given.tokenizer is families.tiny_tokenizer()


def test_an_adapter_in_the_folder_of_its_base_is_in_the_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, folder)
    assert torch.allclose(load(folder).all_logits(IDS), expected(trained()), atol=1e-5)
    assert torch.equal(load(folder).all_logits(IDS), load(folder, adapter).all_logits(IDS)), "and not twice"


def test_a_config_beside_an_adapter_makes_no_model_of_it(base: Path, adapter: Path) -> None:
    shutil.copy(base / "config.json", adapter)
    assert torch.allclose(load(adapter).all_logits(IDS), expected(trained()), atol=1e-5)


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))


@pytest.mark.usefixtures("without_peft")
def test_without_peft_it_is_told_what_to_install(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, folder)
    for given in ((adapter,), (base, adapter), (folder,)):
        with pytest.raises(errors.UnsupportedModelError, match=r"pip install 'patchscopes\[peft\]'") as caught:
            load(*given)
        assert str(given[-1]) in str(caught.value)
        assert str(base) in str(caught.value)


def test_a_peft_that_cannot_be_imported_is_told_as_missing(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: peft.__spec__)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(errors.UnsupportedModelError, match=r"pip install 'patchscopes\[peft\]'"):
        load(adapter)


def test_weights_of_an_adapter_without_its_config(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    shutil.copy(adapter / WEIGHTS, folder)
    with pytest.raises(errors.ModelFilesError, match=r"adapter_model.safetensors\) and no adapter_config.json"):
        load(folder)


def test_a_base_that_is_not_to_be_had_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("org/base", "/no/such/base"):
        config = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with pytest.raises(errors.UnknownModelError, match=r"is an adapter for the base") as caught:
            load(adapter)
        assert name in str(caught.value)
        assert f"load(BASE, adapter={str(adapter)!r})" in str(caught.value)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 26\n")


def no_base(folder: Path) -> None:
    change(folder, base_model_name_or_path=None)


def unknown_kind(folder: Path) -> None:
    change(folder, peft_type="LORAX")


def prompt_tuning(folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM",
                                             "num_virtual_tokens": 3, **base_of(folder)}))  # fmt: skip


def broken_config(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def more_layers(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    more = {key.replace("layers.0.", "layers.7."): value.clone() for key, value in weights.items()}
    safetensors.torch.save_file(weights | more, folder / WEIGHTS, metadata={"format": "pt"})


def fewer_layers(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    kept = {key: value for key, value in weights.items() if "layers.0." not in key}
    safetensors.torch.save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def wider(folder: Path) -> None:
    change(folder, r=5)


def other_modules(folder: Path) -> None:
    change(folder, target_modules=["c_attn"])


def change(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def base_of(folder: Path) -> dict[str, str]:
    return {"base_model_name_or_path": json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (pickled, r"lacks adapter_model.safetensors \(pickled weights are refused"),
        (empty, "cannot be loaded into"),
        (pointer, "git-lfs pointers in place of adapter_model.safetensors"),
        (no_base, r"does not say which base it is for; give it: load\(BASE, adapter="),
        (unknown_kind, "cannot be loaded into .*LORAX"),
        (prompt_tuning, "of the kind PROMPT_TUNING, which puts trained virtual tokens"),
        (broken_config, "adapter_config.json of the adapter .* cannot be read"),
        (more_layers, r"has tensors that find no place in .*: 4 in all: base_model.*layers.7"),
        (fewer_layers, r"lacks in .*: 4 in all: base_model.*layers.0"),
        (wider, "cannot be loaded into .*size mismatch"),
        (other_modules, "cannot be loaded into .*c_attn"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_adapter_is_one_error_that_names_it(adapter: Path, damage: Any, said: str) -> None:
    damage(adapter)
    with pytest.raises(errors.PatchscopesError, match=said) as caught:
        load(adapter)
    assert str(adapter) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_adapter_and_what_is_no_base(base: Path, adapter: Path) -> None:
    with pytest.raises(errors.OptionError, match=r"adapter=.*holds no adapter_config.json"):
        load(base, base)
    with pytest.raises(errors.OptionError, match=r"is an adapter itself, and another is given"):
        load(adapter, adapter)
    with pytest.raises(errors.OptionError, match=r"into a model in memory it goes by peft"):
        ps.load(copy.deepcopy(families.build("llama")), tokenizer=families.tiny_tokenizer(), adapter=adapter)
    with pytest.raises(errors.UnknownModelError, match="no such model path"):
        load(base, "/no/such/adapter")


def cached(cache: Path, hub_id: str, folder: Path) -> None:
    """Put a folder into the hub's cache, as if it had been fetched."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("c" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("c" * 40)


def test_hub_ids_that_are_in_the_cache(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for constant in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, constant, str(tmp_path / "hub"))
    change(adapter, base_model_name_or_path="org/base")
    cached(tmp_path / "hub", "org/base", base)
    cached(tmp_path / "hub", "org/lora", adapter)
    wanted = expected(trained())
    found = [load("org/lora"), load("org/base", "org/lora"), load("org/base", adapter), load(base, "org/lora")]
    for model in found:
        assert torch.allclose(model.all_logits(IDS), wanted, atol=1e-5)
    assert len({model.fingerprint for model in found[:3]}) == 1


def test_the_command_line_and_specifications_take_it(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--source-layers", "2", "--prompt", "x {} ->", "--max-new-tokens", "4", "--controls", "none"]
    options += ["--format", "json"]
    by_option = run(["inspect", "the cat", "--model", str(base), "--adapter", str(adapter), *options], capsys)
    alone = run(["inspect", "the cat", "--model", str(adapter), *options], capsys)
    plain = run(["inspect", "the cat", "--model", str(base), *options], capsys)
    texts = [json.loads(found.out)["cells"][0]["text"] for found in (by_option, alone, plain)]
    assert texts[0] == texts[1] != texts[2]
    spec = tmp_path / "spec.json"
    asked = {"model": str(base), "adapter": str(adapter), "sources": ["the cat"], "source_layers": 2}
    spec.write_text(json.dumps({**asked, "prompt": "x {} ->", "max_new_tokens": 4, "controls": []}))
    assert run(["run", str(spec), "--out", str(tmp_path / "run")], capsys).code == 0
    assert [row.text for row in ps.open_run(tmp_path / "run")] == texts[:1]
    assert run(["models", "check", str(base), "--adapter", str(adapter)], capsys).code == 0
