"""Tiny tokenizers of the kinds that real models ship, besides the byte-level BPE of families.py; no network, no files.

sentencepiece    BPE over "▁" with byte fallback, as Llama 2 (a space put before the text) and Gemma (none) have it
metaspace        Unigram over "▁": a word that is not in the vocabulary leaves the "▁" put before it as a token
trimmed          byte-level BPE whose spans leave out the space before a word; digits apart from their space
wordpiece        lower case, "##" before a continuation
"""

import json
from functools import cache
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import families
from patchscopes.models import Model, wrap_in_memory

SPECIALS = [AddedToken(token, special=True) for token in families.SPECIAL_TOKENS]
SIGNS = "abcdefghijklmnopqrstuvwxyzTBC1235.,?!;:->"
WORDS = ("cat", "x", "a", "1", "?", "hello", "Spain", "the", "The", "of", "is", "capital", "go", "and", "B")
TEXTS = [text for word in WORDS for text in 8 * (word, f" {word}", f"and {word} of")]


@cache
def model_with(kind: str, *, ends: str = "") -> Model:
    """A tiny Llama with the tokenizer `kind`; what `ends` names is put after every text."""
    made = MAKERS[kind]()
    if ends:
        made.post_processor = processors.TemplateProcessing(
            single=f"<bos> $A {ends}", special_tokens=[("<bos>", families.BOS_ID), (ends, made.token_to_id(ends))]
        )
    return wrap_in_memory(families.build("llama"), shipped(made))


def shipped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """`tokenizer` as Transformers has it, with the special tokens and chat template of families.py."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<user>", "<assistant>"],
        chat_template=families.tiny_tokenizer().chat_template,
        clean_up_tokenization_spaces=False,
        **{"unk_token": "<unk>"} if tokenizer.token_to_id("<unk>") is not None else {},
    )


def _sentencepiece(prefix: Literal["dummy", "none"]) -> Tokenizer:
    """As converted from SentencePiece: spaces become "▁" by a normalizer, and the whole text is one word to the BPE."""
    teacher = Tokenizer(models.BPE())
    teacher.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=4,
        show_progress=False,
        special_tokens=SPECIALS,
        initial_alphabet=[*SIGNS, "▁"],
    )
    teacher.train_from_iterator(TEXTS, trainer)
    learned = json.loads(teacher.to_str())["model"]
    vocabulary, merges = learned["vocab"], [tuple(merge) for merge in learned["merges"]]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "dummy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer, tokenizer.decoder = spaces, decoders.Sequence(back)
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def _metaspace() -> Tokenizer:
    vocabulary = [(token, 0.0) for token in (*families.SPECIAL_TOKENS, "<unk>")]
    vocabulary += [("▁", -4.0)] + [(sign, -5.0) for sign in SIGNS]
    vocabulary += [(f"▁{word}", -3.0) for word in WORDS if word != "1"]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=5))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def _trimmed() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=4,
        show_progress=False,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<pad>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, min_frequency=4, show_progress=False, special_tokens=SPECIALS, initial_alphabet=list(SIGNS)
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


MAKERS = {
    "llama-2": lambda: _sentencepiece("dummy"),
    "gemma": lambda: _sentencepiece("none"),
    "metaspace": _metaspace,
    "trimmed": _trimmed,
    "wordpiece": _wordpiece,
}
