"""From the order of the data to one rank's share of a step: token ids and the mask of what is predicted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.order import Order
from minitron_cli.data.tokens import require_ids_in
from minitron_cli.data.vocabulary.reader import Reader
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import BATCH_TOKENS
from minitron_cli.hf.process_group import World
from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.cached_logits.store import Recording, Taught
from minitron_cli.training.options import Options
from minitron_cli.training.reading import Reading, positions_since
from minitron_cli.training.stretches import Stretch


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's rows of one step: ids (row, token) int64 and mask (row, token) float32.

    mask[r, t] is 1 where ids[r, t + 1] is to be predicted from the tokens up to t; the last column is 0.
    `positions` (row, token) start again at 0 with each document where documents are kept apart; `taught` are the
    cached logits of the rows, `readings` how each teacher with a larger vocabulary reads them.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor | None = None
    taught: Taught | None = None
    readings: tuple[Reading | None, ...] = ()

    def num_targets(self) -> int:
        return int(self.mask.sum())


Rows = Callable[[int], Share]


def share_of(ids: np.ndarray, documents: np.ndarray | None = None, taught: Taught | None = None) -> Share:
    """Rows of packed text, which has no padding: every token but a row's first is predicted.

    With `documents` (row, token), ascending along a row, nothing is predicted from another document, nor a document's
    first token at all, and positions start again with each.
    """
    mask = np.ones(ids.shape, dtype=np.float32)
    mask[:, -1] = 0.0
    if documents is None:
        return Share(torch.from_numpy(ids), torch.from_numpy(mask), None, taught)
    mask[:, :-1] *= documents[:, 1:] == documents[:, :-1]
    return Share(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(positions_in(documents)), taught)


def part_of(world: World, global_batch: int) -> slice:
    """This rank's rows: a contiguous block of the global batch, so that the split never changes what is in a step."""
    count = global_batch // world.size
    return slice(world.rank * count, (world.rank + 1) * count)


def rows_of(order: Order, world: World, *, cross_doc: bool = True, recording: Recording | None = None) -> Rows:
    """This rank's rows of each step; without `cross_doc` documents are kept apart (see `share_of`)."""

    def share(step: int) -> Share:
        places, length = order.places(step), order.length(step)
        files, windows = (numbers[part_of(world, len(numbers))] for numbers in places)
        documents = None if cross_doc else order.documents_at(files, windows, length)
        taught = None if recording is None else recording.read(files, windows)
        return share_of(order.rows_at(files, windows, length), documents, taught)

    return share


def with_known_ids(rows: Rows, vocab: int, model: Path) -> Rows:
    """The same rows, refused where they hold an id that a model of `vocab` embeddings does not have."""

    def checked(step: int) -> Share:
        share = rows(step)
        require_ids_in(share.ids.numpy(), vocab, model, f"the data of step {step + 1}")
        return share

    return checked


def with_readings(rows: Rows, readers: Sequence[Reader | None]) -> Rows:
    """The same rows, and how each teacher with a larger vocabulary reads them."""
    return (lambda step: read_by(readers, rows(step))) if any(readers) else rows


def read_by(readers: Sequence[Reader | None], share: Share) -> Share:
    """The same share, and how each teacher with a larger vocabulary reads it."""
    ids, apart = share.ids.numpy(), share.positions is not None
    starts = np.zeros(ids.shape, bool) if share.positions is None else share.positions.numpy() == 0
    readings = tuple(None if one is None else Reading.of(one.read(ids, starts), apart) for one in readers)
    return replace(share, readings=readings if any(readers) else ())


def positions_in(documents: np.ndarray) -> np.ndarray:
    """How far each token is from its document's first in the row: documents (row, token), ascending -> (row, token)."""
    starts = np.ones(documents.shape, bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return positions_since(starts)


class Inputs(NamedTuple):
    """What `KDStep.forward` takes, on the device: ids and weights (row, token), then what only some runs have."""

    ids: Tensor
    weights: Tensor
    position_ids: Tensor | None = None
    recorded: Cached | None = None
    readings: tuple[Reading | None, ...] = ()


class Micro(NamedTuple):
    """A micro-batch, and whether it is its rank's last of the step."""

    inputs: Inputs
    is_last: bool


def micro_batches(share: Share, size: int, tokens: int, device: torch.device) -> Iterator[Micro]:
    """Cut a share up; weights = mask / tokens, tokens counted over all ranks."""
    weights = share.mask / tokens
    for start in range(0, len(share.ids), size):
        part = slice(start, start + size)
        inputs = Inputs(
            _move(share.ids[part], device),
            _move(weights[part], device),
            None if share.positions is None else _move(share.positions[part], device),
            None if share.taught is None else share.taught.at(part, device),
            tuple(one and one.each(partial(_moved, part, device)) for one in share.readings),
        )
        yield Micro(inputs, start + size >= len(share.ids))


def pad_rows(share: Share, count: int) -> Share:
    """The rows and `count` more of id 0, which weigh nothing."""

    def longer(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 0, 0, count))

    return replace(
        share,
        ids=longer(share.ids),
        mask=longer(share.mask),
        positions=None if share.positions is None else longer(share.positions),
        readings=tuple(one and one.each(longer) for one in share.readings),
    )


def _moved(part: slice, device: torch.device, tensor: Tensor) -> Tensor:
    return _move(tensor[part], device)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def choose_micro_batch(options: Options, world: World, stretch: Stretch | None = None) -> int:
    """Rows per forward pass on one device, a divisor of its share. By default the largest within a budget.

    What is asked for is meant for rows of --batch and --seq-len; a `stretch` of others takes as many tokens at a time.
    """
    asked, seq_len = options.micro_batch, options.seq_len
    assert seq_len is not None
    batch, length = (options.batch, seq_len) if stretch is None else (stretch.batch, stretch.seq_len)
    if batch % world.size:
        raise MinitronError(
            f"--batch {batch} does not divide over {world.size} processes",
            f"use a multiple of {world.size}, e.g. {-(-batch // world.size) * world.size}",
        )
    rows = batch // world.size
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    if asked is not None and (batch, length) == (options.batch, seq_len):
        if asked not in divisors:
            raise MinitronError(
                f"--batch {batch} is {rows} sequences per process, which does not divide into micro-batches of {asked}",
                f"--micro-batch can be {', '.join(map(str, divisors[-12:]))}",
            )
        return asked
    budget = asked * seq_len if asked is not None else BATCH_TOKENS[world.device.type]
    return max([d for d in divisors if d * length <= budget], default=1)
