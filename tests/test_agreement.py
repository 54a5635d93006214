"""Engine against reference off float32: how many tokens agree, and that few compared are no agreement (rule 9)."""

import copy

import pytest
import torch

import families
from cli_run import run
from patchscopes import agreement as module
from patchscopes.agreement import NEEDED, Agreement, agreement
from patchscopes.models import wrap_in_memory


def test_enough_tokens_are_compared_in_half_precision() -> None:
    model = wrap_in_memory(copy.deepcopy(families.build("llama")).bfloat16(), families.tiny_tokenizer())
    found = agreement(model)
    assert found.enough
    assert found.compared >= NEEDED == 64
    assert 0.5 < found.rate <= 1


def test_further_sources_run_until_enough_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pairs(_: object, sources: tuple[str, ...]) -> list[tuple[int, int]]:
        asked.append(sources)
        return [(20, 30)]

    monkeypatch.setattr(module, "_pairs", pairs)
    assert agreement(None) == Agreement(60, 90)  # type: ignore[arg-type]
    assert asked == list(module.SOURCES[:3])


def test_nothing_compared_is_no_agreement() -> None:
    assert Agreement(0, 0).rate == 0
    assert not Agreement(0, 0).enough
    assert not Agreement(63, 63).enough
    assert Agreement(60, 64).enough


def test_models_check_says_what_was_measured_and_fails_where_too_little_agrees(
    tiny_folder: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["models", "check", str(tiny_folder), "--dtype", "bfloat16"]
    good = run(command, capsys)
    assert good.code == 0
    assert "|Δ log-probability| of the 50 likeliest tokens at 256 places" in good.out
    for way in ("eager", "cached", "padded", "last digit", "theirs", "ours"):
        assert f"\n    {way} " in good.out
    assert "times what the model's own ways differ by, allowed 1.5)" in good.out
    assert "  ok   agreement   engine and reference give the same token in " in good.out
    monkeypatch.setattr(module, "_pairs", lambda *_: [(2, 2)])
    bad = run(command, capsys)
    assert bad.code == 2
    assert "FAIL agreement   engine and reference give the same token in 8 of 8 (100%" in bad.out
    assert bad.out.endswith("does not obey the semantics\n")


def test_float32_is_asked_for_no_agreement(tiny_folder: object, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(["models", "check", str(tiny_folder)], capsys)
    assert found.code == 0
    assert "agreement" not in found.out
    assert "places" not in found.out


def test_a_model_that_does_not_fit_float16_says_so_and_exits_with_2(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    hf = copy.deepcopy(families.build("llama"))
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.mul_(2**15)
        hf.model.layers[1].mlp.down_proj.weight.mul_(2**-15)
    hf.save_pretrained(tmp_path)
    families.tiny_tokenizer().save_pretrained(tmp_path)
    found = run(["models", "check", str(tmp_path), "--dtype", "float16"], capsys)
    assert found.code == 2
    assert "does not run in float16: its own logits are not finite" in found.err
    assert "obeys the semantics" not in found.out
