"""A row of a cut vocabulary, read in the whole one: against whole documents encoded by `tokenizers` itself."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_cli.data.tokenizer import load_tokenizer, token_byte_lengths, token_bytes
from minitron_cli.data.vocabulary.choose import kept_of_size, removal_order
from minitron_cli.data.vocabulary.pieces import pieces_of
from minitron_cli.data.vocabulary.reader import Reader
from minitron_cli.data.vocabulary.relation import image_of
from minitron_cli.data.vocabulary.surgery import backend_of, cut_tokenizer
from tests.spellers import KINDS, byte_level, made_text, random_unicode, save

SIZE, KEPT = 640, 400


@cache
def backend(kind: str) -> Any:
    return KINDS[kind](made_text(400), SIZE)


def cut_of(raw: dict[str, Any], size: int, place: Path) -> Path:
    """The tokenizer that keeps the `size` least removable of all, in a directory."""
    rows = len(backend_of(raw).get_vocab(with_added_tokens=True))
    order = removal_order(np.arange(rows)[::-1].copy(), pieces_of(raw, rows))
    place.mkdir()
    save(backend_of(cut_tokenizer(raw, kept_of_size(order, rows, size), rows)), place)
    return place


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A cut tokenizer and the whole one."""
    (tmp_path / "whole").mkdir()
    save(backend(request.param), tmp_path / "whole")
    return cut_of(json.loads(backend(request.param).to_str()), KEPT, tmp_path / "cut"), tmp_path / "whole"


def reader_of(cut: Path, whole: Path) -> Reader:
    image, differences = image_of(cut, whole)
    assert differences == []
    return Reader(cut, whole, image)


def encoded(tokenizer: Path, text: str) -> list[int]:
    return list(load_tokenizer(tokenizer).backend.encode(text, add_special_tokens=False).ids)


def texts() -> list[str]:
    draw = random.Random(5)
    return [*made_text(12, seed=9), *(random_unicode(draw) for _ in range(12)), "世界你好漢字かな" * 5, "x", "  \n a"]


def no_starts(ids: np.ndarray) -> np.ndarray:
    return np.zeros(ids.shape, bool)


def test_a_whole_document_is_read_as_the_whole_tokenizer_spells_it(pair: tuple[Path, Path]) -> None:
    cut, whole = pair
    reader, respelled = reader_of(cut, whole), 0
    for text in texts():
        mine, theirs = encoded(cut, text), encoded(whole, text)
        ids = np.array([[*mine, 1]])  # </s> or <s>: an added token ends the text
        size = max(len(ids[0]), len(theirs))
        ids = np.concatenate([ids, np.full((1, size - ids.shape[1]), 1)], axis=1)
        found = reader.read(ids, no_starts(ids))
        assert found.ids[0, : len(theirs)].tolist() == theirs
        respelled += mine != [int(np.flatnonzero(reader.image == i)[0]) for i in theirs if i in reader.image]
    assert respelled > 5, "every text has the same tokens in both: nothing is tested"


def test_places_are_where_both_have_spelled_the_same_bytes(pair: tuple[Path, Path]) -> None:
    """By brute force, on rows cut out of joined documents at any token: also inside characters and words."""
    cut, whole = pair
    reader = reader_of(cut, whole)
    stream = [i for text in texts() for i in [*encoded(cut, text), 2]]
    length = 23
    ids = np.array(stream[: len(stream) // length * length]).reshape(-1, length)
    found = reader.read(ids, no_starts(ids))
    mine, theirs = (token_bytes(load_tokenizer(path)) for path in pair)
    for row, read, places in zip(ids, found.ids, found.places):
        ends = np.cumsum([len(theirs[i]) for i in read])
        for at, place in enumerate(places):
            spelled = b"".join(mine[i] for i in row[: at + 1])
            if place >= 0:
                assert b"".join(theirs[i] for i in read[: place + 1]) == spelled
            else:
                assert len(spelled) not in ends.tolist() or len(spelled) > ends[-1]
    assert 0.3 < (found.places >= 0).mean() < 1


def test_nothing_is_read_across_documents(pair: tuple[Path, Path]) -> None:
    cut, whole = pair
    one, other = (encoded(cut, text) for text in (" straße", " straße"))
    ids = np.array([[*one, *other, 2]])
    starts = no_starts(ids)
    starts[0, [0, len(one), len(one) + len(other)]] = True
    found = reader_of(cut, whole).read(ids, starts)
    alone = encoded(whole, " straße")
    assert found.ids[0, : 2 * len(alone)].tolist() == alone * 2
    assert np.flatnonzero(found.starts[0]).tolist() == [0, len(alone), 2 * len(alone)]


def test_a_text_that_gets_shorter_or_longer_fits_its_row(pair: tuple[Path, Path]) -> None:
    cut, whole = pair
    ids = np.array([encoded(cut, made_text(1, seed=3)[0])[:40]])
    found = reader_of(cut, whole).read(ids, no_starts(ids))
    assert found.ids.shape == found.places.shape == ids.shape
    assert found.places.max() < 40


def test_bytes_that_are_no_text_are_read_as_they_are(pair: tuple[Path, Path]) -> None:
    """Random ids, as the check of an exported model gives them: never an error, and always the same bytes."""
    cut, whole = pair
    reader = reader_of(cut, whole)
    ids = np.random.default_rng(0).integers(0, KEPT, (20, 30))
    found = reader.read(ids, no_starts(ids))
    assert (found.ids < SIZE).all()
    assert (found.places < 30).all()


def test_an_equal_tokenizer_changes_nothing(pair: tuple[Path, Path]) -> None:
    _, whole = pair
    ids = np.array([encoded(whole, made_text(1, seed=4)[0])[:50]])
    found = reader_of(whole, whole).read(ids, no_starts(ids))
    assert (found.ids == ids).all()
    assert (found.places == np.arange(50)).all()


def test_two_cuts_in_a_row_are_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cut, whole = pair
    again = cut_of(json.loads((cut / "tokenizer.json").read_text()), KEPT - 60, tmp_path / "again")
    first, second, both = image_of(again, cut), image_of(cut, whole), image_of(again, whole)
    assert first[1] == second[1] == both[1] == []
    assert (second[0][first[0]] == both[0]).all()


def test_the_image_is_token_by_token(pair: tuple[Path, Path]) -> None:
    cut, whole = (load_tokenizer(path).backend for path in pair)
    image, _ = image_of(*pair)
    assert [whole.id_to_token(int(i)) for i in image] == [cut.id_to_token(i) for i in range(len(image))]


def test_a_tokenizer_of_other_text_is_no_cut(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        save(byte_level(made_text(100, seed=seed), 400 + 100 * seed), tmp_path / name)
    assert {"vocabulary", "merges"} >= set(image_of(tmp_path / "one", tmp_path / "other")[1]) != set()


@pytest.mark.parametrize(("part", "how"), [
    ("pre_tokenizer", lambda raw: raw.update(pre_tokenizer={"type": "Digits", "individual_digits": True})),
    ("normalizer", lambda raw: raw.update(normalizer={"type": "NFC"})),
    ("model options", lambda raw: raw["model"].update(ignore_merges=True)),
    ("added tokens", lambda raw: raw["added_tokens"][0].update(lstrip=True)),
    ("merges", lambda raw: raw["model"]["merges"].reverse()),
])  # fmt: skip
def test_what_decides_the_tokens_must_be_equal(part: str, how: Any, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    save(backend("byte-level BPE"), tmp_path / "whole")
    cut = cut_of(json.loads(backend("byte-level BPE").to_str()), KEPT, tmp_path / "cut")
    assert image_of(cut, tmp_path / "whole")[1] == []
    raw = json.loads((cut / "tokenizer.json").read_text())
    how(raw)
    (cut / "tokenizer.json").write_text(json.dumps(raw))
    assert image_of(cut, tmp_path / "whole")[1] == [part]


def test_scores_of_unigram_count(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    save(backend("Unigram"), tmp_path / "whole")
    cut = cut_of(json.loads(backend("Unigram").to_str()), KEPT, tmp_path / "cut")
    raw = json.loads((cut / "tokenizer.json").read_text())
    raw["model"]["vocab"][300][1] -= 1.5
    (cut / "tokenizer.json").write_text(json.dumps(raw))
    assert image_of(cut, tmp_path / "whole")[1] == ["vocabulary"]


def test_token_bytes_join_to_the_text(pair: tuple[Path, Path]) -> None:
    for path in pair:
        tokenizer = load_tokenizer(path)
        spelled, lengths = token_bytes(tokenizer), token_byte_lengths(tokenizer)
        for text in made_text(5, seed=6):
            ids = encoded(path, text)
            assert b"".join(spelled[i] for i in ids).decode().removeprefix(" ") == text.removeprefix(" ")
            assert all(lengths[i] in (0, len(spelled[i])) for i in ids)
