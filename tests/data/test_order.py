"""The order of rows: against its definition, epoch by epoch, mixture by mixture, phase by phase."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.data.mixture import counts, exact_weights
from minitron_cli.data.order import Order, mixture_weights
from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.prepare import token_files
from minitron_cli.data.schedule import Phase, Schedule
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from tests.data.corpora import byte_level, documents, write_jsonl

MakeFile = Callable[..., TokenFile]
SEQ = 16
MIXED = (Phase(7, (1.0, 0.0, 0.0)), Phase(30, (0.3, 0.6, 0.1)))


@pytest.fixture
def files(make_file: MakeFile) -> tuple[TokenFile, ...]:
    return make_file("a", 40), make_file("b", 15, seed=1), make_file("c", 3, seed=2)


def places(order: Order, steps: range) -> list[tuple[int, int]]:
    """(file, window) of every row of `steps`, one after another."""
    return [tuple(pair) for step in steps for pair in zip(*(part.tolist() for part in order.places(step)))]


def test_rows_are_the_windows_at_their_places(files: tuple[TokenFile, ...]) -> None:
    order = Order(files, (0.5, 0.3, 0.2), SEQ, 12, seed=3)
    for step in (0, 1, 50):
        rows = order.rows(step)
        assert rows.shape == (12, SEQ)
        assert rows.dtype == np.int64
        for row, (file, window) in zip(rows, places(order, range(step, step + 1))):
            assert row.tolist() == files[file].tokens[window * SEQ : (window + 1) * SEQ].tolist()


def test_every_epoch_reads_every_window_once(files: tuple[TokenFile, ...]) -> None:
    file = files[0]
    n = file.num_windows(SEQ)
    order = Order((file,), (1.0,), SEQ, 1, seed=0)
    epochs = [[window for _, window in places(order, range(e * n, (e + 1) * n))] for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(n))
    other = Order((file,), (1.0,), SEQ, 1, seed=1)
    assert [window for _, window in places(other, range(n))] != epochs[0]


def test_unweighted_sources_are_one_pass_over_all(files: tuple[TokenFile, ...]) -> None:
    order = Order(files, mixture_weights((None,) * 3, files, SEQ), SEQ, 1, seed=0)
    total = sum(file.num_windows(SEQ) for file in files)
    for epoch in range(2):
        seen = Counter(places(order, range(epoch * total, (epoch + 1) * total)))
        assert len(seen) == total
        assert set(seen.values()) == {1}
    assert order.epochs(total).tolist() == [1.0, 1.0, 1.0]
    assert mixture_weights((2.0, 1.0, 1.0), files, SEQ) == (2.0, 1.0, 1.0)


def test_the_stream_does_not_know_how_it_is_cut_into_steps_ranks_and_micro_batches(
    files: tuple[TokenFile, ...],
) -> None:
    """Step sizes 4, 8, 24 read the same rows; ranks that take slices of a step read its rows and no others."""
    streams = [
        np.concatenate([Order(files, (0.6, 0.3, 0.1), SEQ, batch, seed=9).rows(s) for s in range(48 // batch)])
        for batch in (4, 8, 24)
    ]
    assert all((stream == streams[0]).all() for stream in streams)
    order = Order(files, (0.6, 0.3, 0.1), SEQ, 24, seed=9)
    for world, micro in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        share = 24 // world
        ranks = [order.rows(1)[rank * share : (rank + 1) * share] for rank in range(world)]
        pieces = [rank[start : start + micro] for rank in ranks for start in range(0, share, micro)]
        assert (np.concatenate(pieces) == order.rows(1)).all()


def test_resuming_needs_the_step_number_alone(files: tuple[TokenFile, ...]) -> None:
    order = Order(files, (0.6, 0.3, 0.1), SEQ, 7, seed=5, phases=(Phase(10, (0.1, 0.8, 0.1)),))
    expected = [order.rows(step) for step in range(40)]
    reopened = tuple(TokenFile.open(file.path) for file in files)
    again = Order(reopened, (0.6, 0.3, 0.1), SEQ, 7, seed=5, phases=(Phase(10, (0.1, 0.8, 0.1)),))
    for step in (39, 9, 10, 0, 23):
        assert (again.rows(step) == expected[step]).all()
    assert again.history(40) == order.history(40)


def test_proportions_are_exact_to_rounding_at_every_step(files: tuple[TokenFile, ...]) -> None:
    weights = (0.55, 0.35, 0.1)
    order = Order(files, weights, SEQ, 13, seed=0)
    held = np.zeros(3)
    for step in range(200):
        held += np.bincount(order.places(step)[0], minlength=3)
        assert np.abs(held - np.array(weights) * 13 * (step + 1)).max() < 1
    assert order.epochs(200) == pytest.approx(held / [file.num_windows(SEQ) for file in files])


def test_a_domain_reads_its_own_epochs_whatever_the_others_do(files: tuple[TokenFile, ...]) -> None:
    """Also across a change of weights: each file's windows come in whole epochs, none lost, none twice."""
    order = Order(
        files, (0.2, 0.2, 0.6), SEQ, 10, seed=2, phases=(Phase(7, (1.0, 0.0, 0.0)), Phase(30, (0.3, 0.6, 0.1)))
    )
    seen = places(order, range(120))
    for number, file in enumerate(files):
        n = file.num_windows(SEQ)
        mine = [window for domain, window in seen if domain == number]
        for start in range(0, len(mine) - n + 1, n):
            assert sorted(mine[start : start + n]) == list(range(n))
        assert len(mine) > n


def spans_read(order: Order, steps: range) -> list[tuple[int, int, int]]:
    """(file, first token, last token + 1) of every row of `steps`, one after another."""
    lengths = [order.length(step) for step in steps for _ in order.places(step)[0]]
    return [(file, at * n, (at + 1) * n) for (file, at), n in zip(places(order, steps), lengths)]


SEVERAL = (
    Phase(9, None, 8, SEQ // 4),
    Phase(20, (0.5, 0.3, 0.2), 3, SEQ // 2),
    Phase(26),
    Phase(40, None, 5, SEQ // 4),
)


def test_rows_of_several_lengths_share_no_token_of_an_epoch(files: tuple[TokenFile, ...]) -> None:
    """Token by token: none is read more often than there were epochs, and little less of it where phases end."""
    order, steps = Order(files, (0.6, 0.3, 0.1), SEQ, 4, seed=1, phases=SEVERAL), 80
    assert [len(order.places(step)[0]) for step in (8, 9, 20, 26, 40)] == [8, 3, 4, 5, 4]
    assert [order.length(step) for step in (8, 9, 20, 26, 40)] == [SEQ // 4, SEQ // 2, SEQ, SEQ // 4, SEQ]
    read = [np.zeros(file.num_windows(SEQ) * SEQ, int) for file in files]
    for step in range(steps):
        rows, epochs = order.rows(step), order.epochs(step + 1)
        for row, (file, first, last) in zip(rows, spans_read(order, range(step, step + 1)), strict=True):
            assert row.tolist() == files[file].tokens[first:last].tolist()
            read[file][first:last] += 1
        assert all(count.max() <= np.ceil(passed) for count, passed in zip(read, epochs))
        unread = [passed - count.mean() for count, passed in zip(read, epochs)]
        assert max(np.array(unread) * [len(count) for count in read]) <= order.num_lost / len(files) * SEQ
    assert order.epochs(steps).min() > 1


def test_short_rows_come_from_all_over_the_file(files: tuple[TokenFile, ...]) -> None:
    """Neighbours of a block do not follow one another, as they would without an order of their own."""
    order = Order(files[:1], (1.0,), SEQ, 16, seed=1, phases=(Phase(9, seq_len=SEQ // 4),))
    windows = order.places(0)[1]
    assert (np.diff(windows) == 1).sum() < 4
    assert len(set(windows // 4)) > 8
    other = Order(files[:1], (1.0,), SEQ, 16, seed=2, phases=(Phase(9, seq_len=SEQ // 4),))
    assert other.places(0)[1].tolist() != windows.tolist()


def test_one_length_is_read_in_the_order_that_it_always_was(files: tuple[TokenFile, ...]) -> None:
    """A literal: number c of a domain is place c mod n of the permutation of epoch c // n. Batches are cuts of it."""
    order = Order(files, (0.6, 0.3, 0.1), SEQ, 4, seed=1, phases=(Phase(9, None, 8, SEQ), Phase(20, (0.2, 0.6, 0.2))))
    given = [0, 0, 0]
    for file, window in places(order, range(100)):
        n, c = files[file].num_windows(SEQ), given[file]
        assert window == permute(np.array([c % n]), n, derive(1, file, c // n))[0]
        given[file] += 1
    assert order.used(100).tolist() == given


def test_an_order_of_weights_alone_is_identified_as_it_was() -> None:
    found = Schedule((0.2, 0.2, 0.6), 10, (Phase(7, (1.0, 0.0, 0.0)), Phase(30, None, 5))).identity()
    assert found["phases"] == [[7, [1.0, 0.0, 0.0]], [30, None, (5, None)]]


def test_phases_hold_their_weights_until_their_step(files: tuple[TokenFile, ...]) -> None:
    order = Order(
        files, (0.2, 0.2, 0.6), SEQ, 10, seed=2, phases=(Phase(7, (1.0, 0.0, 0.0)), Phase(30, (0.3, 0.6, 0.1)))
    )
    for first, last, weights in [(0, 7, (1.0, 0.0, 0.0)), (7, 30, (0.3, 0.6, 0.1)), (30, 90, (0.2, 0.2, 0.6))]:
        domains = [domain for domain, _ in places(order, range(first, last))]
        expected = counts(exact_weights(weights), (last - first) * 10)
        assert np.bincount(domains, minlength=3).tolist() == expected.tolist()


def test_documents_number_the_pieces_of_a_row(make_file: MakeFile) -> None:
    """A document begins at BOS here: the oracle counts BOS tokens along the row."""
    file = make_file("a", 60, separator="bos")
    order = Order((file,), (1.0,), 64, 8, seed=0)
    for step in range(4):
        rows = order.rows(step)
        starts = rows == file.header.bos_id
        expected = np.cumsum(starts, axis=1) - starts[:, :1]
        assert (order.documents(step) == expected).all()
    assert order.documents(0).max() > 1


def test_a_billion_windows_cost_no_more_than_ten(files: tuple[TokenFile, ...]) -> None:
    """Nothing of the size of the file may be made: a stand-in file of 10^12 windows has no such memory to give."""
    huge = _Huge(files[0])
    order = Order((huge, files[0]), (0.9, 0.1), SEQ, 64, seed=0)  # type: ignore[arg-type]
    domains, windows = order.places(10**9)
    assert (domains == 0).sum() == 58
    assert windows.max() > 10**11


class _Huge:
    """The header of a real file, and more windows than anyone has."""

    def __init__(self, real: TokenFile) -> None:
        self.header = real.header

    header = None

    def num_windows(self, seq_len: int) -> int:
        return 10**12


@pytest.mark.parametrize(
    ("weights", "phases", "seq_len", "message"),
    [
        ((1.0,), (), SEQ, "1 weights for 3 sources"),
        ((1.0, 1.0, 1.0), (Phase(5, (1.0,)),), SEQ, "1 weights for 3 sources"),
        ((1.0, 1.0, 1.0), (Phase(5, (1.0,) * 3), Phase(5)), SEQ, "phases end at steps"),
        ((1.0, 1.0, 1.0), (Phase(0, (1.0,) * 3),), SEQ, "phases end at steps"),
        ((0.0, 0.0, 0.0), (), SEQ, "not shares of a mixture"),
        ((1.0, 1.0, 1.0), (), 100_000, "too few tokens for one row of 100,000"),
        ((1.0, 1.0, 1.0), (Phase(5, seq_len=100_000),), 10, "too few tokens for one row of 100,000"),
        (
            (1.0, 1.0, 1.0),
            (Phase(5, seq_len=6), Phase(9, seq_len=8)),
            SEQ,
            "rows of 6 tokens do not divide those of 16",
        ),
    ],
)
def test_orders_that_can_not_be(
    files: tuple[TokenFile, ...],
    weights: tuple[float, ...],
    phases: tuple[Phase, ...],
    seq_len: int,
    message: str,
) -> None:
    with pytest.raises(MinitronError, match=message) as caught:
        Order(files, weights, seq_len, 4, 0, phases)
    assert caught.value.hint


def test_files_of_two_tokenizers_are_not_mixed(files: tuple[TokenFile, ...], tmp_path: Path) -> None:
    other = byte_level(tmp_path / "other", seed=7)
    source = write_jsonl(tmp_path / "o.jsonl", documents(20))
    foreign = token_files(parse_sources([str(source)]), other)
    with pytest.raises(MinitronError, match="made with another tokenizer"):
        Order((*files, *foreign), (1.0,) * 4, SEQ, 4, 0)
