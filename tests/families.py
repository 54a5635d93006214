"""Tiny random models of every supported family, and tiny tokenizers; no network, no files.

Each family differs from the next in its number of blocks, its width or both, so that a number hard-coded in the code
under test fails somewhere. Every weight is drawn here, not by Transformers' initialisers: their std of 0.02 makes
blocks of this width nearly the identity, and the zeros and ones that they leave in biases and norms would hide a
skipped bias or norm.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MAX_TOKENS = 400
N_POSITIONS = 128
WINDOW = 4
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>", "<user>", "<assistant>")
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2

# Which families stop early, and at what; the others never do. The second id of a list is an ordinary token, as in
# models that end a turn in two ways. The score of <eos> is doubled, so that it is met in a tenth to half of the runs.
EOS: dict[str, int | list[int]] = {
    "llama": EOS_ID,
    "gpt2": EOS_ID,
    "opt": EOS_ID,
    "bloom": EOS_ID,
    "gemma3": [EOS_ID, 92],
    "falcon-alibi": [EOS_ID, 36],
}

ALIBI = frozenset({"bloom", "falcon-alibi"})
# Rows that no token of the tokenizer has: real Qwen checkpoints are padded so, and a model may generate such an id.
EXTRA_ROWS = {"qwen2": 19}

LEARNED_POSITIONS = frozenset({"gpt2", "opt", "opt-projected", "opt-post-norm"})
SLIDING = frozenset({"mistral", "gemma2", "gemma3", "starcoder2"})


def _llama_like(n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, **more: Any) -> dict[str, Any]:
    """The options that most decoder configs share under Llama's names."""
    sizes = {"hidden_size": d_model, "intermediate_size": 2 * d_model, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads}
    return sizes | heads | {"max_position_embeddings": N_POSITIONS} | more


def _gpt_like(n_layers: int, d_model: int, n_heads: int, **more: Any) -> dict[str, Any]:
    """The same under GPT-2's names."""
    return {"n_layer": n_layers, "n_embd": d_model, "n_head": n_heads, "n_positions": N_POSITIONS} | more


def _opt(n_layers: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    return sizes | {"max_position_embeddings": N_POSITIONS} | more


def _falcon(n_layers: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "ffn_hidden_size": 64, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    return sizes | {"max_position_embeddings": N_POSITIONS} | more


def _alternating(n_layers: int, period: int) -> list[str]:
    """Sliding layers with a full one at every `period`-th, as Gemma has them."""
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n_layers)]


_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
    "attention_bias": True,
}
_QWEN3_MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

_RECIPES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, _llama_like(4, 32, 4, 2)),
    "mistral": (hf.MistralConfig, _llama_like(5, 32, 4, 2, sliding_window=WINDOW)),
    "qwen2": (hf.Qwen2Config, _llama_like(3, 32, 4, 2)),
    "qwen3": (hf.Qwen3Config, _llama_like(4, 40, 4, 2, head_dim=8, tie_word_embeddings=True)),
    "gemma2": (
        hf.Gemma2Config,
        _llama_like(
            5,
            32,
            4,
            2,
            **_GEMMA,
            final_logit_softcapping=4.0,
            attn_logit_softcapping=2.0,
            layer_types=_alternating(5, 2),
        ),
    ),
    "gemma3": (hf.Gemma3TextConfig, _llama_like(5, 32, 4, 1, **_GEMMA, layer_types=_alternating(5, 3))),
    "gpt2": (hf.GPT2Config, _gpt_like(4, 32, 4)),
    "gpt-neox": (
        hf.GPTNeoXConfig,
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": N_POSITIONS,
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
        },
    ),
    "gptj": (hf.GPTJConfig, _gpt_like(4, 48, 4, rotary_dim=4)),
    "opt": (hf.OPTConfig, _opt(4)),
    "opt-projected": (hf.OPTConfig, _opt(3, word_embed_proj_dim=16, do_layer_norm_before=True)),
    # OPT-350m: blocks end in a norm, there is no final norm, and the embedding is projected as well.
    "opt-post-norm": (hf.OPTConfig, _opt(3, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "phi3": (hf.Phi3Config, _llama_like(3, 32, 4, 2)),
    "falcon": (hf.FalconConfig, _falcon(4, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-alibi": (
        hf.FalconConfig,
        _falcon(3, alibi=True, bias=True, multi_query=False, parallel_attn=False, new_decoder_architecture=False),
    ),
    "bloom": (hf.BloomConfig, {"hidden_size": 32, "n_layer": 5, "n_head": 4}),
    "stablelm": (
        hf.StableLmConfig,
        _llama_like(4, 64, 4, 2, use_parallel_residual=False, use_qkv_bias=True, partial_rotary_factor=0.25),
    ),
    "olmo2": (hf.Olmo2Config, _llama_like(3, 32, 4, 2)),
    "granite": (hf.GraniteConfig, _llama_like(4, 32, 4, 2, **_GRANITE)),
    "cohere": (hf.CohereConfig, _llama_like(3, 32, 4, 2, logit_scale=1.7)),
    "starcoder2": (hf.Starcoder2Config, _llama_like(5, 32, 4, 2, sliding_window=WINDOW)),
    "mixtral": (hf.MixtralConfig, _llama_like(3, 32, 4, 2, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": (hf.Qwen3MoeConfig, _llama_like(4, 40, 4, 2, **_QWEN3_MOE)),
}

FAMILIES: tuple[str, ...] = tuple(_RECIPES)

# Generator seed and gain of the matrices (see `_draw_weights`). Most random models of this size say one token whatever
# they read, so these were looked for: nearly every write changes the text, texts are varied, and padding changes a
# logit by less than 2e-5. Higher gains magnify rounding; at 2, Gemma (embeddings times sqrt(d_model)) echoes its input.
_DRAWS: dict[str, tuple[int, float]] = {
    "llama": (3, 1.75),
    "mistral": (8, 2.0),
    "qwen2": (20, 2.0),
    "qwen3": (11, 2.0),
    "gemma2": (10, 1.0),
    "gemma3": (21, 1.0),
    "gpt2": (10, 2.0),
    "gpt-neox": (22, 2.0),
    "gptj": (18, 2.0),
    "opt": (5, 2.0),
    "opt-projected": (6, 2.0),
    "opt-post-norm": (6, 2.0),
    "phi3": (12, 2.0),
    "falcon": (16, 2.0),
    "falcon-alibi": (9, 1.75),
    "bloom": (1, 1.5),
    "stablelm": (4, 2.0),
    "olmo2": (21, 1.5),
    "granite": (15, 2.0),
    "cohere": (14, 1.5),
    "starcoder2": (9, 2.0),
    "mixtral": (4, 1.5),
    "qwen3-moe": (16, 2.0),
}


@cache
def build(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of `family` in float32 and eval mode; the same object each time, so do not change it.

    Only the models of seed 0 are known to answer writes with varied texts.
    """
    make_config, options = _RECIPES[family]
    d_vocab = len(tiny_tokenizer()) + EXTRA_ROWS.get(family, 0)
    config = make_config(vocab_size=d_vocab, bos_token_id=BOS_ID, eos_token_id=None, pad_token_id=PAD_ID, **options)
    with torch.random.fork_rng():
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    drawn, gain = _DRAWS[family]
    _draw_weights(model, torch.Generator().manual_seed(drawn + 1000 * seed), gain)
    if family in EOS:
        model.get_output_embeddings().weight[EOS_ID] *= 2
        model.generation_config.eos_token_id = EOS[family]
    return model


def n_layers_of(family: str) -> int:
    """Blocks of `family`, read from its recipe."""
    options = _RECIPES[family][1]
    return options["num_hidden_layers"] if "num_hidden_layers" in options else options["n_layer"]


def _draw_weights(model: PreTrainedModel, generator: torch.Generator, gain: float) -> None:
    """Matrices get a std of `gain` per square root of fan-in, so that blocks outweigh embeddings; vectors get noise.

    `parameters` yields a tied matrix once.
    """
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(gain * _fan_in(model, parameter) ** -0.5 * noise)


def _fan_in(model: PreTrainedModel, parameter: Tensor) -> int:
    """Inputs of a matrix. GPT-2 alone stores its matrices transposed, as Conv1D, except its embeddings."""
    is_embedding = any(parameter is m.weight for m in model.modules() if isinstance(m, nn.Embedding))
    transposed = model.config.model_type == "gpt2" and not is_embedding
    return parameter.shape[0 if transposed else -1]


# What the tokenizer is trained on: each word or sign that tests want as one token, with and without its space.
_WORDS = ("cat", "x", "hello", "Spain", "Wales", "Syria", "the", "of", "is", "capital", "country", "?", "->", ";", ":")
_TEXTS = [text for word in _WORDS for text in 8 * (word, f" {word}", f"a {word} b")] + 8 * ["1135 !; 1135", "x!;"]

_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def tiny_tokenizer(add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `MAX_TOKENS` entries, in which each of `_WORDS` is one token and rarer words split.

    "!;" is one token, so "!" before ";" is a placeholder that merges. With `add_bos`, raw text gets <bos> in front.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS,
        min_frequency=4,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    offsets = processors.ByteLevel(trim_offsets=False)
    bos = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)])
    tokenizer.post_processor = processors.Sequence([offsets, bos]) if add_bos else offsets
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<user>", "<assistant>"],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
