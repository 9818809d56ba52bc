"""A cut tokenizer against its original, for the three kinds: equal ids where all are kept, exact text everywhere."""

import json
import random
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.vocabulary.choose import kept_of_size, removal_order, size_for_coverage
from minitron_cli.data.vocabulary.counts import count_tokens, respelling
from minitron_cli.data.vocabulary.pieces import NONE, last_merges, merges_of, pieces_of, spells, tokens_of
from minitron_cli.data.vocabulary.surgery import backend_of, cut_tokenizer
from minitron_cli.data.vocabulary.wanted import listed_ids, named_ids
from minitron_cli.errors import MinitronError
from tests.spellers import KINDS, made_text, random_unicode, save

SIZE = 640
PATHOLOGICAL = (
    *("a" * 41, "ab" * 20 + "a", "the" * 15, " " * 17, "\n\n \n\t", "aaab" * 7, "\u2581\u2581x", "<0x41>", "</s>x<s>"),
    *("", "e\u0301\u0301"),
)


@cache
def original(kind: str) -> dict[str, Any]:
    found = json.loads(KINDS[kind](made_text(400), SIZE).to_str())
    assert isinstance(found, dict)
    return found


def texts() -> Iterator[str]:
    draw = random.Random(5)
    yield from made_text(60, seed=9)
    yield from (random_unicode(draw) for _ in range(150))
    yield from PATHOLOGICAL
    yield from ("".join(draw.choices("abthe \u2581", k=25)) for _ in range(150))


def cut(kind: str, share: float, seed: int = 0) -> tuple[Any, Any, np.ndarray]:
    """Original and cut tokenizer, and the kept ids: a random closed set of about this share of what may go."""
    raw = original(kind)
    rows = load_size(raw)
    pieces = pieces_of(raw, rows)
    order = removal_order(np.random.default_rng(seed).integers(0, 1000, rows), pieces)
    kept = kept_of_size(order, rows, rows - int(len(order) * share))
    return backend_of(raw), backend_of(cut_tokenizer(raw, kept, rows)), kept


def load_size(raw: dict[str, Any]) -> int:
    return max([*tokens_of(raw["model"]).values(), *(token["id"] for token in raw["added_tokens"])]) + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_text_of_kept_tokens_keeps_its_tokens_and_all_text_its_characters(kind: str, share: float) -> None:
    before, after, kept = cut(kind, share)
    place = {int(old): new for new, old in enumerate(kept)}
    same = other = 0
    for text in texts():
        old, new = before.encode(text), after.encode(text)
        assert after.decode(new.ids, skip_special_tokens=False) == before.decode(old.ids, skip_special_tokens=False)
        if all(index in place for index in old.ids):
            assert new.ids == [place[index] for index in old.ids]
            same += 1
        else:
            other += 1
    assert same, "no text was of kept tokens"
    assert other, "no text was of others: the test proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_token_by_token_gives_the_kept_tokens_text(kind: str) -> None:
    before, after, kept = cut(kind, 0.5)
    for new, old in enumerate(map(int, kept)):
        assert after.id_to_token(new) == before.id_to_token(old)


def test_a_set_that_is_not_closed_changes_tokens() -> None:
    """The negative control: without a part of a kept token, its text is no longer spelled by it."""
    raw = original("byte-level BPE")
    rows = load_size(raw)
    pieces = pieces_of(raw, rows)
    child = next(i for i in range(rows - 1, 0, -1) if (pieces.parents[i] != NONE).all()
                 and not pieces.required[pieces.parents[i]].all())  # fmt: skip
    parent = next(int(p) for p in pieces.parents[child] if not pieces.required[p])
    kept = np.setdiff1d(np.arange(rows), [parent])
    before, after = backend_of(raw), backend_of(cut_tokenizer(raw, kept, rows))
    text = before.decode([child])
    assert before.encode(text).ids == [child]
    assert after.encode(text).ids != [int(np.searchsorted(kept, child))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_of_the_order_is_closed_and_keeps_what_is_required(kind: str) -> None:
    raw = original(kind)
    pieces = pieces_of(raw, load_size(raw))
    order = removal_order(np.zeros(len(pieces.present), np.int64), pieces)
    assert len(set(order.tolist())) == len(order)
    assert not pieces.required[order].any()
    gone = np.full(len(pieces.present), len(order))
    gone[order] = np.arange(len(order))
    for child, pair in enumerate(pieces.parents):
        assert all(gone[child] < gone[p] or gone[p] == len(order) for p in pair if p != NONE)


def test_last_merges_are_those_that_a_literal_bpe_makes() -> None:
    merges = merges_of(original("SentencePiece BPE")["model"])
    rank = {pair: place for place, pair in reversed(list(enumerate(merges)))}

    def literal(token: str) -> tuple[str, str] | None:
        symbols, last = list(token), None
        while True:
            ranked = [(rank[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in rank]
            if not ranked:
                return last if len(symbols) == 1 else None
            at = min(ranked)[1]
            last = (symbols[at], symbols[at + 1])
            symbols[at : at + 2] = ["".join(last)]

    found = last_merges(merges)
    several = [t for t in found if sum(a + b == t for a, b in merges) > 1]
    assert len(several) > 20
    assert all(found[token] == literal(token) for token in several if literal(token))


def test_the_least_used_leaves_go_first_and_their_uses_pass_to_their_parts() -> None:
    #          0    1    2    3     4      5
    tokens = ["a", "b", "c", "ab", "abc", "bc"]
    merges = [["a", "b"], ["ab", "c"], ["b", "c"]]
    raw = {"model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}}
    pieces = pieces_of(raw, 7)
    counts = np.array([0, 0, 0, 5, 4, 6, 0])
    # Row 6 is nobody's; abc (4) goes before bc (6); ab then has 5 + 4 uses and outlives bc.
    assert removal_order(counts, pieces).tolist() == [6, 4, 5, 3]
    order = removal_order(counts, pieces)
    assert size_for_coverage(order, counts, 1.0) == 6
    assert size_for_coverage(order, counts, 11 / 15) == 5
    with pytest.raises(MinitronError, match="3 tokens must stay"):
        kept_of_size(order, 7, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_respelling_are_those_of_encoding_again(kind: str, tmp_path: Path) -> None:
    save(KINDS[kind](made_text(400), SIZE), tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    lines = [{"text": text, "domain": f"d{i % 2}"} for i, text in enumerate(made_text(80, seed=3))]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = load_size(raw) + 3  # embeddings beyond the tokenizer
    counts = count_tokens([str(tmp_path / "corpus.jsonl")], tmp_path, rows)
    backend = load_tokenizer(tmp_path).backend
    for domain in ("d0", "d1"):
        ids = [
            i
            for line in lines
            if line["domain"] == domain
            for i in backend.encode(line["text"], add_special_tokens=False).ids
        ]
        expected = np.bincount(ids, minlength=rows)
        ours = counts[domain].copy()
        for separator in ("<s>", "</s>"):
            ours[backend.token_to_id(separator)] = 0
        np.testing.assert_array_equal(ours, expected)
    total = counts["d0"] + counts["d1"]
    order = removal_order(total, pieces_of(raw, rows))
    assert set(order[:3]) == {rows - 3, rows - 2, rows - 1}
    kept = kept_of_size(order, rows, rows - len(order) // 2)
    found = respelling(counts, raw, tmp_path, kept, rows)
    after = backend_of(cut_tokenizer(raw, kept, rows))
    for domain, one in found.items():
        of_domain = [line["text"] for line in lines if line["domain"] == domain]
        old, new = (
            sum(len(t.encode(text, add_special_tokens=False).ids) for text in of_domain) for t in (backend, after)
        )
        assert one.lengthening * one.tokens == pytest.approx(new - old, abs=0.02 * old)
        assert one.tokens_changed == pytest.approx(1 - counts[domain][kept].sum() / counts[domain].sum())


def test_listed_and_named_tokens_stay(tmp_path: Path) -> None:
    save(KINDS["byte-level BPE"](made_text(400), SIZE), tmp_path)
    template = "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + ' other' }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    backend = load_tokenizer(tmp_path).backend
    named = named_ids(
        tmp_path, {"eos_token_id": [7, 9], "text": {"image_token_index": 11}, "pad_token_id": -1}, backend
    )
    wanted = {7, 9, 11, *backend.encode(" other").ids, *backend.encode("user\n").ids, backend.token_to_id("<s>")}
    assert wanted <= named
    (tmp_path / "keep.txt").write_text("Ġother\nsome new words\n")
    listed = listed_ids(tmp_path / "keep.txt", backend)
    assert listed == {backend.token_to_id("Ġother"), *backend.encode("some new words").ids}


@pytest.mark.parametrize(("model", "why"), [
    ({"type": "WordPiece", "vocab": {"a": 0}}, "WordPiece"),
    ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "prefix or suffix"),
    ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}, "at random"),
])  # fmt: skip
def test_what_cannot_be_cut_exactly_is_refused_in_words(model: dict[str, Any], why: str) -> None:
    with pytest.raises(MinitronError, match=why):
        pieces_of({"model": model}, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_spells_any_text_does(kind: str) -> None:
    raw = json.loads(KINDS[kind](made_text(60), 600).to_str())
    draw, backend = random.Random(5), backend_of(raw)
    assert str(spells(raw)).startswith("spells any text")
    unknown = backend.token_to_id("<unk>")
    assert not any(unknown in backend.encode(random_unicode(draw)).ids for _ in range(50))


def test_a_tokenizer_without_bytes_spells_its_characters() -> None:
    from tokenizers import Tokenizer, models
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {token: i for i, token in enumerate(["<unk>", "a", "b", "ab"])}
    raw = json.loads(Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>")).to_str())
    assert spells(raw) == "spells text of 2 characters; others are unknown to it"
    assert backend_of(raw).encode("abc").ids == [vocab["ab"], vocab["<unk>"]]
    lacks = json.loads(KINDS["byte-level BPE"](made_text(20), 500).to_str())
    del lacks["model"]["vocab"][bytes_to_unicode()[4]]
    assert spells(lacks) == "spells any text, by its bytes; it drops 0x04"
    assert spells(json.loads(Tokenizer(models.WordLevel(vocab, unk_token="<unk>")).to_str())) is None
