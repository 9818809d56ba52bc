"""From the order of the data to one rank's share of a step: token ids and the mask of what is predicted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.order import Order
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.store import Recording, Taught
from minitron_cli.training.distributed import World
from minitron_cli.training.options import Options


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's rows of one step: ids (row, token) int64 and mask (row, token) float32.

    mask[r, t] is 1 where ids[r, t + 1] is to be predicted from what stands before it; the last column is 0.
    `positions` (row, token) start again at 0 with each document where documents are kept apart; `taught` is what a
    recorded teacher says of the rows.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor | None = None
    taught: Taught | None = None

    def num_targets(self) -> int:
        return int(self.mask.sum())


Rows = Callable[[int], Share]


def full_mask(ids: np.ndarray) -> np.ndarray:
    """Every token but a row's first is predicted: packed text has no padding."""
    mask = np.ones(ids.shape, dtype=np.float32)
    mask[:, -1] = 0.0
    return mask


def rows_of(order: Order, world: World, *, cross_doc: bool = True, recording: Recording | None = None) -> Rows:
    """This rank's rows: a contiguous block of the global batch, so that the split never changes what is in a step.

    Without `cross_doc` nothing of a row is predicted from another document, nor a document's first token at all.
    """

    def share(step: int) -> Share:
        count = order.global_batch // world.size
        files, windows = order.places(step)
        mine = slice(world.rank * count, (world.rank + 1) * count)
        ids = read_rows(order.files, files[mine], windows[mine], order.seq_len)
        mask, positions = full_mask(ids), None
        if not cross_doc:
            documents = order.documents(step)[mine]
            mask[:, :-1] *= documents[:, 1:] == documents[:, :-1]
            positions = torch.from_numpy(positions_in(documents))
        taught = None if recording is None else recording.read(files[mine], windows[mine])
        return Share(torch.from_numpy(ids), torch.from_numpy(mask), positions, taught)

    return share


def read_rows(files: Sequence[TokenFile], numbers: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
    """Window windows[r] of file numbers[r] as row r: (row, seq_len) int64."""
    ids = np.empty((len(numbers), seq_len), np.int64)
    for number in np.unique(numbers):
        mine = numbers == number
        ids[mine] = files[number].windows(windows[mine], seq_len)
    return ids


def positions_in(documents: np.ndarray) -> np.ndarray:
    """How far each token is from its document's first in the row: documents (row, token), ascending -> (row, token)."""
    columns = np.broadcast_to(np.arange(documents.shape[1]), documents.shape)
    starts = np.ones(documents.shape, bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


class Micro(NamedTuple):
    """A micro-batch on the device: ids and weights (row, token), and what else the step takes by name."""

    ids: Tensor
    weights: Tensor
    more: dict[str, Any]
    is_last: bool


def micro_batches(share: Share, size: int, tokens: int, device: torch.device) -> Iterator[Micro]:
    """Cut a share up; weights = mask / tokens, tokens counted over all ranks."""
    weights = share.mask / tokens
    for start in range(0, len(share.ids), size):
        part = slice(start, start + size)
        more: dict[str, Any] = {}
        if share.positions is not None:
            more["position_ids"] = _move(share.positions[part], device)
        if share.taught is not None:
            more["recorded"] = share.taught.top_k(part, device)
        yield Micro(_move(share.ids[part], device), _move(weights[part], device), more, start + size >= len(share.ids))


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def choose_micro_batch(options: Options, world: World) -> int:
    """Rows per forward pass on one device, a divisor of its share. Unasked: the largest within a token budget.

    The budget only has to fill the device: 16 thousand tokens keep a GPU busy, 4 thousand stay in a CPU's caches.
    """
    batch, asked, seq_len = options.batch, options.micro_batch, options.seq_len
    assert seq_len is not None
    if batch % world.size:
        raise MinitronError(
            f"--batch {batch} does not divide over {world.size} processes",
            f"use a multiple of {world.size}, e.g. {-(-batch // world.size) * world.size}",
        )
    rows = batch // world.size
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    if asked is not None:
        if asked not in divisors:
            raise MinitronError(
                f"--batch {batch} is {rows} sequences per process, which does not divide into micro-batches of {asked}",
                f"--micro-batch can be {', '.join(map(str, divisors[-12:]))}",
            )
        return asked
    budget = 16384 if world.device.type == "cuda" else 4096
    return max([d for d in divisors if d * seq_len <= budget], default=1)
