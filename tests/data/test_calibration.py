"""Calibration draws: over the whole source, none twice, the same for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest

from minitron_cli.data.calibration import calibration_rows, padded_rows
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError

SEQ = 16
MakeFile = Callable[..., TokenFile]


@pytest.fixture
def files(make_file: MakeFile) -> tuple[TokenFile, ...]:
    return make_file("a", 200), make_file("b", 100, seed=1)


def all_windows(file: TokenFile) -> list[bytes]:
    n = file.num_windows(SEQ)
    return [row.tobytes() for row in np.asarray(file.tokens[: n * SEQ]).astype(np.int64).reshape(n, SEQ)]


def test_all_of_a_source_is_all_of_its_windows(files: tuple[TokenFile, ...]) -> None:
    n = files[0].num_windows(SEQ)
    rows, identity = calibration_rows(files[:1], (1.0,), n, SEQ, seed=0)
    assert sorted(row.tobytes() for row in rows) == sorted(all_windows(files[0]))
    assert identity["samples"] == n


def test_windows_come_from_the_whole_source_not_its_head(files: tuple[TokenFile, ...]) -> None:
    order = {window: index for index, window in enumerate(all_windows(files[0]))}
    n = len(order)
    rows, _ = calibration_rows(files[:1], (1.0,), n // 4, SEQ, seed=0)
    drawn = np.array([order[row.tobytes()] for row in rows])
    assert len(set(drawn.tolist())) == n // 4
    tenths = np.histogram(drawn, bins=10, range=(0, n))[0]
    assert tenths.min() > 0
    assert abs(drawn.mean() / n - 0.5) < 0.1


def test_weights_share_the_samples(files: tuple[TokenFile, ...]) -> None:
    sets = [set(all_windows(file)) for file in files]
    rows, _ = calibration_rows(files, (0.75, 0.25), 40, SEQ, seed=1)
    assert sum(row.tobytes() in sets[0] for row in rows) == 30
    assert sum(row.tobytes() in sets[1] for row in rows) == 10


def test_a_larger_draw_begins_with_the_smaller(files: tuple[TokenFile, ...]) -> None:
    small, _ = calibration_rows(files, (0.6, 0.4), 10, SEQ, seed=1)
    large, _ = calibration_rows(files, (0.6, 0.4), 50, SEQ, seed=1)
    other, _ = calibration_rows(files, (0.6, 0.4), 10, SEQ, seed=2)
    assert (large[:10] == small).all()
    assert (other != small).any()


def test_the_identity_names_the_content(files: tuple[TokenFile, ...]) -> None:
    _, one = calibration_rows(files, (0.6, 0.4), 10, SEQ, seed=1)
    _, same = calibration_rows(files, (0.6, 0.4), 10, SEQ, seed=1)
    _, swapped = calibration_rows(files[::-1], (0.6, 0.4), 10, SEQ, seed=1)
    assert one == same != swapped
    assert [source["names"] for source in one["sources"]] == [["a"], ["b"]]
    assert one["sources"][0]["tokens_sha256"] == files[0].header.tokens_sha256


def test_too_few_windows_are_counted(files: tuple[TokenFile, ...]) -> None:
    n = files[1].num_windows(SEQ)
    with pytest.raises(MinitronError) as caught:
        calibration_rows(files[1:], (1.0,), n + 1, SEQ, seed=0)
    tokens = files[1].header.num_tokens
    assert f"has {n:,} windows of 16 tokens ({tokens:,} tokens), {n + 1:,} are wanted" in caught.value.message
    assert "--allow-fewer" in caught.value.hint
    rows, identity = calibration_rows(files[1:], (1.0,), n + 1, SEQ, seed=0, allow_fewer=True)
    assert rows.shape == (n, SEQ)
    assert identity["samples"] == n
    with pytest.raises(MinitronError, match="has 0 windows"):  # none at all is not fewer
        calibration_rows(files[1:], (1.0,), 1, 10**6, seed=0, allow_fewer=True)
    with pytest.raises(MinitronError, match="0 calibration samples"):
        calibration_rows(files[1:], (1.0,), 0, SEQ, seed=0)


def test_padded_rows_are_documents_and_their_mask(files: tuple[TokenFile, ...]) -> None:
    file = files[0]
    ends = file.documents["end"].astype(int)
    whole = {
        np.asarray(file.tokens[start:end][:SEQ]).astype(np.int64).tobytes() for start, end in zip([0, *ends], ends)
    }
    rows, mask, identity = padded_rows(files[:1], (1.0,), 200, SEQ, seed=0, pad_id=77)
    assert rows.shape == mask.shape == (200, SEQ)
    assert {row[keep].tobytes() for row, keep in zip(rows, mask)} == whole
    assert (rows[~mask] == 77).all()
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # padding follows the text
    lengths = np.minimum(np.diff(ends, prepend=0), SEQ)
    assert sorted(mask.sum(1).tolist()) == sorted(lengths.tolist())
    assert identity["kind"] == "padded"
    with pytest.raises(MinitronError, match="has 200 documents"):
        padded_rows(files[:1], (1.0,), 201, SEQ, seed=0, pad_id=0)
