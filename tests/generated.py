"""Runs of tiny models, and what the oracle says of the same cells: the model's own cached `generate` on plain hooks."""

import copy
import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

import families
import oracle
import patchscopes as ps
from patchscopes.errors import PatchscopesWarning
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import tokenize
from patchscopes.results import Results

SOURCE = "the capital of Spain"
PROMPT = "cat -> cat; hello -> hello; {} ->"


def built(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return copy.deepcopy(families.build(family)).to(dtype)


def loaded(hf: PreTrainedModel) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PatchscopesWarning)
        return ps.load(hf, tokenizer=families.tiny_tokenizer())


def wrapped(hf: PreTrainedModel) -> Model:
    """As `loaded`, without the self-check."""
    return wrap_in_memory(hf, families.tiny_tokenizer())


def look(model: Model, sources: Any = SOURCE, **options: Any) -> Results:
    n = model.n_layers
    given: dict[str, Any] = {
        "prompt": PROMPT,
        "source_layers": [1],
        "target_layers": [0, n - 1],
        "max_new_tokens": 3,
        "controls": ("unpatched",),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PatchscopesWarning)
        return ps.inspect(model, sources, **(given | options))


def said(results: Results) -> list[tuple[Any, ...]]:
    return [(row.control, row.source_layer, row.target_layer, row.token_ids) for row in results]


def as_generated(model: Model) -> list[tuple[Any, ...]]:
    """What the oracle says of the same cells, with the model's own `generate`, hooks and all."""
    n, hf = model.n_layers, model.hf
    ids = tokenize(model, SOURCE).ids
    target = tokenize(model, PROMPT.replace("{}", "x"))
    position = next(i for i, token in enumerate(target.tokens) if token == " x")
    found: list[tuple[Any, ...]] = []
    for layer in (1,):
        for other in (0, n - 1):
            source = oracle.Source(ids, len(ids) - 1, layer)
            place = oracle.Target(target.ids, (position,), other)
            found.append((None, layer, other, oracle.hook_generate(hf, source, place, max_new_tokens=3)))
    place = oracle.Target(target.ids, (), 1)
    found.append(("unpatched", None, None, oracle.hook_generate(hf, None, place, max_new_tokens=3)))
    return found
