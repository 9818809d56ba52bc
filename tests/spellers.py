"""The three kinds of tokenizer whose vocabulary can be cut, trained in a moment on text that is in many scripts."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TEXT = """
the of and to in is that for it with as was on be at by this had not are but from or have an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man even
def return class import self print range lambda yield raise none true false while
über straße größe naïve façade señor мир привет слово день 世界 你好 漢字 かな カナ 한국 말 مرحبا שלום
ελληνικά 😀 👩‍💻 🇫🇷 => != <= :: // /* */ {} [] () 0x1F 3.14 1_000 e-5
"""
WORDS = tuple(_TEXT.split())
_RANGES = (
    *((0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x400, 0x4FF), (0x600, 0x6FF), (0x2000, 0x206F), (0x3040, 0x30FF)),
    *((0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0x1F300, 0x1FAFF), (0xE0000, 0xE007F)),
    (0x10FF00, 0x10FFFF),
)


def made_text(documents: int, seed: int = 0, words: int = 40) -> list[str]:
    """Documents of words drawn with falling frequency, in every script of WORDS."""
    draw = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(WORDS))]
    marks = (" ", " ", " ", " ", "\n", ", ", ". ", "  ")
    joined = []
    for _ in range(documents):
        chosen = draw.choices(WORDS, weights, k=words)
        joined.append("".join(word + draw.choice(marks) for word in chosen))
    return joined


def random_unicode(draw: random.Random, length: int = 30) -> str:
    """Any characters at all: controls, unassigned, astral, combining; no surrogates."""
    return "".join(chr(draw.randint(*draw.choice(_RANGES))) for _ in range(length))


SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


def byte_level(texts: Sequence[str], size: int) -> Any:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def sentencepiece_bpe(texts: Sequence[str], size: int) -> Any:
    """As Llama 2, Mistral and Gemma have it: no pre-tokeniser, every way to make a token a merge, lone bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = _spaces()
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size - 259, limit_alphabet=80, special_tokens=[], show_progress=False)
    )
    lone = [f"<0x{value:02X}>" for value in range(256)]
    learned = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *lone, *learned, "▁"]))}
    ways = [
        (vocab[token], (token[:cut], token[cut:]))
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges = [pair for _, pair in sorted(ways, key=lambda way: way[0])]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), _spaces()])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    )
    return backend


def _spaces() -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(" ", "▁")


def unigram(texts: Sequence[str], size: int) -> Any:
    """As T5 and XLM-R have it, with lone bytes for what no piece spells."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=size - 256, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    lone = [(f"<0x{value:02X}>", 0.0) for value in range(256)]
    backend = Tokenizer(models.Unigram([*pieces, *lone], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return backend


KINDS = {"byte-level BPE": byte_level, "SentencePiece BPE": sentencepiece_bpe, "Unigram": unigram}


def save(backend: Any, path: Path, **more: Any) -> None:
    """A tokenizer as a model directory holds it."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **more}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(path)
