"""Streams against the same text packed as a whole; resuming at every step; a source that changes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.data import readers, stream_text
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import HubName, Source, parse_sources
from minitron_cli.data.stream import RowStream, StreamOrder
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.errors import MinitronError
from tests.data.corpora import documents, write_jsonl

SEQ, ROWS = 16, 10
MakeStream = Callable[..., RowStream]


@pytest.fixture(params=["files", "hub"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A directory of three files, by its path or as a data set of the `datasets` library, read in small batches."""
    monkeypatch.setattr(readers, "PIECE_BYTES", 3000)
    monkeypatch.setattr(stream_text, "BATCH", 7)
    (tmp_path / "corpus").mkdir()
    for index in range(3):
        write_jsonl(tmp_path / "corpus" / f"p{index}.jsonl", documents(50, seed=index))
    if request.param == "files":
        return parse_sources([str(tmp_path / "corpus")])[0]
    return Source("corpus", "corpus", hub=HubName(str(tmp_path / "corpus"), None, "train"))


@pytest.fixture
def make(source: Source, tokenizer_dir: Path) -> MakeStream:
    tokenizer = load_tokenizer(tokenizer_dir)
    return lambda **options: RowStream(source, tokenizer, SEQ, **({"seed": 3, "block_rows": ROWS} | options))


@pytest.fixture
def packed(tmp_path: Path, tokenizer_dir: Path, source: Source) -> np.ndarray:
    """The oracle: the whole corpus as one token file, twice over."""
    tokens = token_files(parse_sources([str(tmp_path / "corpus")]), tokenizer_dir)[0].tokens
    return np.concatenate([tokens, tokens]).astype(np.int64)


def test_a_block_holds_its_stretch_of_the_packed_text(make: MakeStream, packed: np.ndarray) -> None:
    """Block by block, over the end of the source and into its second pass, each row of the stretch once."""
    stream = make()
    whole = packed[: len(packed) // SEQ * SEQ].reshape(-1, SEQ)
    blocks = len(whole) // ROWS
    assert blocks > 40
    moved = 0
    for block in range(blocks):
        rows = stream.rows(np.arange(block * ROWS, (block + 1) * ROWS))
        expected = whole[block * ROWS : (block + 1) * ROWS]
        assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))
        moved += int((rows != expected).any(1).sum())
    assert moved > 0.7 * blocks * ROWS  # they are shuffled
    stream.close()


@pytest.mark.parametrize("with_index", [True, False])
def test_any_step_can_be_resumed_from(make: MakeStream, tmp_path: Path, with_index: bool) -> None:
    index = tmp_path / "index.jsonl" if with_index else None
    first = StreamOrder((make(index=index),), (1.0,), 4)
    expected = [first.rows(step) for step in range(60)]
    first.streams[0].close()
    for start in (59, 0, 31):
        again = StreamOrder((make(index=index),), (1.0,), 4)
        for step in range(start, min(start + 5, 60)):
            assert (again.rows(step) == expected[step]).all()
        again.streams[0].close()
    backwards = make()
    assert (StreamOrder((backwards,), (1.0,), 4).rows(20) == expected[20]).all()
    assert (StreamOrder((backwards,), (1.0,), 4).rows(1) == expected[1]).all()
    backwards.close()


def test_resuming_reads_from_the_block_not_from_the_beginning(
    make: MakeStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make(index=tmp_path / "index.jsonl")
    stream.rows(np.arange(30 * ROWS))
    stream.close()
    torn = (tmp_path / "index.jsonl").read_text() + '{"block": 31, "posi'
    (tmp_path / "index.jsonl").write_text(torn)  # killed while writing
    again = make(index=tmp_path / "index.jsonl")
    encoded: list[int] = []
    encode = type(again._packing).encode
    monkeypatch.setattr(
        type(again._packing), "encode", lambda self, texts: encoded.append(len(texts)) or encode(self, texts)
    )
    again.rows(np.array([29 * ROWS]))
    again.close()
    assert sum(encoded) < 30  # two blocks' worth of the 150 documents, not 29 blocks' worth


def test_the_step_size_does_not_change_the_stream(make: MakeStream) -> None:
    streams = [make() for _ in range(3)]
    found = [
        np.concatenate([StreamOrder((stream,), (1.0,), batch).rows(s) for s in range(60 // batch)])
        for stream, batch in zip(streams, (3, 10, 30))
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
    for stream in streams:
        stream.close()


def test_streams_are_mixed_by_weight(make: MakeStream) -> None:
    one, two = make(), make(seed=4)
    order = StreamOrder((one, two), (0.75, 0.25), 8)
    rows = np.concatenate([order.rows(step) for step in range(5)])
    alone = {bytes(row) for row in make().rows(np.arange(30))}
    assert sum(bytes(row) in alone for row in rows) >= 30
    one.close()
    two.close()


def test_a_source_that_changes_under_a_run_is_noticed(make: MakeStream, tmp_path: Path) -> None:
    stream = make(index=tmp_path / "index.jsonl")
    stream.rows(np.arange(ROWS))
    stream.close()
    write_jsonl(tmp_path / "corpus" / "p0.jsonl", documents(50, seed=9))
    changed = make(index=tmp_path / "index.jsonl")
    with pytest.raises(MinitronError, match="has changed: block 0 is not what this run read"):
        changed.rows(np.arange(ROWS))
    changed.close()
    with pytest.raises(MinitronError, match="index of another stream"):
        make(index=tmp_path / "index.jsonl", block_rows=ROWS + 1)


def test_an_empty_source_ends_in_words(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "e.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    (source,) = parse_sources([str(tmp_path / "e.jsonl")])
    stream = RowStream(source, load_tokenizer(tokenizer_dir), SEQ, seed=0)
    with pytest.raises(MinitronError, match="every document is empty"):
        stream.rows(np.arange(1))
    stream.close()
