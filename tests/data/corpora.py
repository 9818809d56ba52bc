"""Small tokenizers and corpora of the data tests, made from nothing."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_SENTENCE = "the cat sat on a mat while naïve owls drank café au lait near 東京 at 07:45, didn't they? yes & no"
WORDS = _SENTENCE.split(" ")


def text(seed: int, words: int = 60) -> str:
    """A document of random words, with line ends, double spaces and characters of up to three bytes."""
    pick = random.Random(seed)
    return "".join(pick.choice(WORDS) + pick.choice([" ", " ", " ", "  ", "\n", "\n\n"]) for _ in range(words)).strip()


def documents(count: int, seed: int = 0) -> list[str]:
    return [text(seed * 100_003 + index, words=5 + index % 80) for index in range(count)]


def write_jsonl(file: Path, texts: list[str], field: str = "text", **columns: list[str]) -> Path:
    rows = [{field: text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def byte_level(path: Path, vocab: int = 400, seed: int = 0, adds_bos: bool = True, eos: bool = True) -> Path:
    """A byte-level BPE tokenizer (GPT-2's kind) trained on `documents`, saved as a model directory has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(documents(200, seed), trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"} | (
        {"eos_token": "<eos>"} if eos else {}
    )
    return _save(tokenizer, path, config)


def sentencepiece_like(path: Path) -> Path:
    """A BPE tokenizer of Llama-2's kind: spaces as U+2581, one put in front, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # A short alphabet, so that some characters of the corpus must fall back to their bytes.
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, limit_alphabet=30)
    tokenizer.train_from_iterator(documents(200), trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if not token["content"].startswith("<0x")]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return _save(Tokenizer.from_str(json.dumps(raw)), path, config)


def word_level(path: Path, words: int) -> Path:
    """A tokenizer of `words` words w0, w1, ... split at blanks: as large a vocabulary as one likes, at once."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1} | {f"w{i}": i + 2 for i in range(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _save(tokenizer, path, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})


def _save(tokenizer: Tokenizer, path: Path, config: dict[str, str]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
