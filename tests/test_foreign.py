"""Whose fault an error is: what libraries raise becomes one error of ours, and our own faults stay what they are."""

import copy
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from jinja2 import TemplateError
from torch import nn

import families
import patchscopes as ps
import patchscopes.selfcheck
from conftest import tiny_model
from patchscopes import errors
from patchscopes.foreign import explained, is_foreign, is_ours, reason_of, running
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import tokenize
from patchscopes.prompts.tokens import render_chat

TOKENIZER = families.tiny_tokenizer()


def own(family: str = "llama") -> Any:
    return copy.deepcopy(families.build(family))


def in_package(source: str, **names: object) -> Callable[..., Any]:
    """A function `f` of a module of the package, as far as a traceback tells."""
    module = types.ModuleType("patchscopes.made_up")
    vars(module).update(names, torch=torch, np=np, json=json)
    exec(compile(source, "made_up.py", "exec"), vars(module))
    made: Callable[..., Any] = vars(module)["f"]
    return made


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except (
        ValueError,
        IndexError,
        OSError,
        AttributeError,
        RuntimeError,
        KeyError,
        AssertionError,
        TypeError,
    ) as error:
        return error
    except TemplateError as error:
        return error
    raise AssertionError("nothing was raised")


class Broken(nn.Module):
    """A module of somebody else's."""

    def forward(self, *_: object, **__: object) -> object:
        raise ValueError("broken on\npurpose")


class CallsBack(nn.Module):
    """A module that calls `f`, as a model calls a hook or an attention function."""

    def __init__(self, f: Callable[..., object]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: object) -> object:
        return self.f(x)


THEIRS = {
    "a module": ("def f(): return module(1)", {"module": Broken()}),
    "torch's own module": ("def f(): return module(torch.tensor([99]))", {"module": nn.Embedding(3, 2)}),
    "loading": ("def f(): return load('/no/such/folder')", {"load": TOKENIZER.from_pretrained}),
    "a template": (
        "def f(): return tokenizer.apply_chat_template([{}], chat_template='{{ raise_exception(1) }}')",
        {"tokenizer": TOKENIZER},
    ),
    "through the standard library": (
        "import functools\ndef f(): return functools.partial(module, 1)()",
        {"module": Broken()},
    ),
    "ours, then a module": (
        "def g(): return module(1)\ndef f(): return outer(lambda _: g())",
        {"module": Broken(), "outer": CallsBack(lambda x: None)},
    ),
}
THEIRS["ours, then a module"][1]["outer"] = lambda call: call(1)

OURS = {
    "an assertion": ("def f(): assert False, 'ours'", {}),
    "arithmetic": ("def f(): return torch.ones(2) @ torch.ones(3)", {}),
    "torch's function": ("def f(): return torch.nn.functional.layer_norm(torch.ones(2), (3,))", {}),
    "a wrong name": ("def f(): return module.weihgt", {"module": nn.Linear(2, 2)}),
    "a wrong place": ("def f(): return module[9]", {"module": nn.ModuleList()}),
    "json": ("def f(): return json.loads('{')", {}),
    "numpy": ("def f(): return np.linalg.inv(np.zeros((2, 3)))", {}),
    "a callback of ours": ("def f(): return module(None)", {"module": CallsBack(in_package("def f(x): return x.y"))}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_what_a_library_raises_is_theirs(name: str) -> None:
    source, names = THEIRS[name]
    error = raised(in_package(source, **names))
    assert is_foreign(error), error
    assert not is_ours(error)
    with pytest.raises(errors.ModelRunError) as caught, running("tiny"):
        in_package(source, **names)()
    assert type(caught.value.__cause__) is type(error)
    assert str(caught.value).startswith(f"tiny fails when it is run: {type(error).__name__}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_what_we_raise_is_ours(name: str) -> None:
    source, names = OURS[name]
    error = raised(in_package(source, **names))
    assert not is_foreign(error), error
    assert is_ours(error)
    with pytest.raises(type(error)) as caught, running("tiny"):
        in_package(source, **names)()
    assert not isinstance(caught.value, errors.PatchscopesError)


def test_a_function_that_is_no_librarys_is_not_hidden() -> None:
    """Such as one that a test, or a user, puts in the place of ours."""

    def boom() -> None:
        raise RuntimeError("not of a model")

    error = raised(in_package("def f(): return boom()", boom=boom))
    assert not is_foreign(error)
    assert not is_ours(error)


def test_a_users_hook_in_a_model_is_the_models() -> None:
    module = nn.Linear(2, 2)

    def hook(*_: object) -> None:
        raise KeyError("mine")

    module.register_forward_hook(hook)
    assert is_foreign(raised(in_package("def f(): return module(torch.ones(2))", module=module)))


def test_a_tokenizer_class_of_ones_own_is_a_tokenizer() -> None:
    class Mine(type(TOKENIZER)):  # type: ignore[misc]
        def __call__(self, *_: object, **__: object) -> object:
            raise ValueError("no")

    mine = Mine(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert is_foreign(raised(in_package("def f(): return tokenizer('x')", tokenizer=mine)))


def test_our_errors_warnings_and_interrupts_pass() -> None:
    for error in (errors.LayerError("no"), UserWarning("made an error"), KeyboardInterrupt()):

        def hook(*_: object, error: BaseException = error) -> None:
            raise error

        module = nn.Linear(2, 2)
        module.register_forward_hook(hook)
        with pytest.raises(type(error)) as caught, running("tiny"):
            in_package("def f(): return module(torch.ones(2))", module=module)()
        assert caught.value is error


def test_a_panic_of_a_library_in_rust_is_an_error_too() -> None:
    panic = type("PanicException", (BaseException,), {})("index out of bounds")
    with (
        pytest.raises(errors.OptionError, match="index out of bounds") as caught,
        explained(lambda error: errors.OptionError(reason_of(error))),
    ):
        raise panic
    assert caught.value.__cause__ is panic


def test_memory_is_told_as_memory() -> None:
    class Large(nn.Module):
        def forward(self, x: object) -> object:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99")

    with pytest.raises(errors.OutOfMemoryError, match="tiny ran out of memory"), running("tiny"):
        in_package("def f(): return module(1)", module=Large())()


def test_a_reason_is_one_line_and_not_too_long() -> None:
    assert reason_of(ValueError("a\n  b")) == "a b"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 5000))) < 400


# ------------------------------------------------------------------------------------------------------ at each place


@pytest.mark.parametrize("model_type", ["llama", "made-up"], ids=["in the table", "outside"])
def test_a_model_that_raises_when_it_is_checked(model_type: str) -> None:
    hf = own()
    hf.config.__class__ = type("Config", (type(hf.config),), {"model_type": model_type})
    hf.model.layers[2].mlp = Broken()
    with pytest.raises(errors.SelfCheckError, match="broken on purpose") as caught:
        ps.load(hf, tokenizer=TOKENIZER)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "encoder" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "made-up"], ids=["in the table", "outside"])
@pytest.mark.parametrize("fault", [RuntimeError("ours"), AssertionError("ours"), KeyError("ours"), TypeError("ours")])
def test_a_fault_of_ours_in_the_check_is_not_hidden(
    model_type: str, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = own()
    hf.config.__class__ = type("Config", (type(hf.config),), {"model_type": model_type})

    def boom(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(patchscopes.selfcheck, "compute_of", boom)
    with pytest.raises(type(fault)) as caught:
        ps.load(hf, tokenizer=TOKENIZER)
    assert caught.value is fault


def test_a_family_outside_the_table_whose_parts_are_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the structure is a guess: what does not fit it is no fault of ours."""
    hf = own()
    hf.config.__class__ = type("Config", (type(hf.config),), {"model_type": "made-up"})
    monkeypatch.setattr(patchscopes.selfcheck, "compute_of", in_package("def f(model): return model.hf.no_such_part"))
    with pytest.raises(errors.SelfCheckError, match=r"not in the architecture table .*AttributeError.*no_such_part"):
        ps.load(hf, tokenizer=TOKENIZER)


def test_attention_that_ours_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("attention with sinks cannot share a prefix")

    monkeypatch.setattr(patchscopes.selfcheck._Check, "_rows", refuse)
    with pytest.raises(errors.SelfCheckError, match="way that is not supported: attention with sinks"):
        ps.load(own(), tokenizer=TOKENIZER)


def test_logits_that_are_not_finite_are_told_so() -> None:
    hf = own()
    hf.model.layers[1].mlp.register_forward_hook(lambda _, __, output: output * float("inf"))
    with pytest.raises(errors.SelfCheckError, match=r'logits are not finite.*dtype="float32"') as caught:
        ps.load(hf, tokenizer=TOKENIZER)
    assert "encoder" not in str(caught.value)


def with_template(template: Any) -> Model:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return wrap_in_memory(families.build("llama"), tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].content.no.such }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ({"rag": "x", "tools": "y"}, "rag"),
    ],
    ids=["raises", "syntax", "undefined", "division", "type", "several"],
)
def test_a_chat_template_that_raises(template: Any, said: str) -> None:
    model = with_template(template)
    prompt = ps.InspectionPrompt("the {} cat", chat=True)
    for call in (lambda: render_chat(model, "hello", ""), lambda: ps.inspect(model, "the cat", prompt=prompt)):
        with pytest.raises(errors.PromptError, match=said) as caught:
            call()
        assert "chat template of llama" in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_tokenizer_that_cannot_encode() -> None:
    """As `WordPiece` without a token for what is unknown."""
    bare = tokenizers.Tokenizer(tokenizers.models.WordPiece({"cat": 0}, unk_token="[UNK]"))
    tokenizer = type(TOKENIZER)(tokenizer_object=bare)
    model = tiny_model("llama")
    model = Model(
        model.hf, tokenizer, model.architecture, id="tiny", revision=None, fingerprint=lambda: model.fingerprint
    )
    with pytest.raises(errors.OptionError, match=r"the tokenizer of tiny cannot encode 'dog': .*\[UNK\]") as caught:
        tokenize(model, "dog")
    assert caught.value.__cause__ is not None


def damaged(folder: Path, name: str, **changes: object) -> None:
    content = json.loads((folder / name).read_text())
    for key, value in changes.items():
        content = (
            content | {key: value}
            if not isinstance(value, dict)
            else content | {key: {**(content.get(key) or {}), **value}}
        )
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "changes", "kind", "said"),
    [
        (
            "config.json",
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            errors.UnsupportedModelError,
            r"is quantised \(gptq\), and its quantiser does not load it here: .*optimum",
        ),
        (
            "config.json",
            {"quantization_config": {"quant_method": "made-up"}},
            errors.UnsupportedModelError,
            r"is quantised \(made-up\), in a way that transformers",
        ),
        (
            "tokenizer.json",
            {"model": {"type": "SuperBPE"}},
            errors.ModelFilesError,
            r"the tokenizer of .* cannot be read by tokenizers .*tokenizer=tokenizer",
        ),
        ("tokenizer.json", {"version": "9"}, errors.ModelFilesError, "the tokenizer of .* cannot be read"),
        ("config.json", {"hidden_size": "wide"}, errors.ModelFilesError, "cannot be loaded as a language model"),
        ("config.json", {"num_attention_heads": 0}, errors.ModelFilesError, "cannot be loaded as a language model"),
        ("config.json", {"rope_parameters": {"rope_type": "spiral"}}, errors.ModelFilesError, "cannot be loaded"),
        ("config.json", {"hidden_act": "wave"}, errors.ModelFilesError, "cannot be loaded as a language model: .*wave"),
    ],
)
def test_what_is_raised_while_loading(
    name: str, changes: dict[str, object], kind: type[Exception], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    damaged(folder, name, **changes)
    with pytest.raises(kind, match=said) as caught:
        ps.load(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is not None or "made-up" in said
    assert "\n" not in str(caught.value)
