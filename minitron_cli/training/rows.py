"""From the order of the data to one rank's share of a step: token ids and the mask of what is predicted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.order import Order
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.training.distributed import World


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's rows of one step: ids (row, token) int64 and mask (row, token) float32.

    mask[r, t] is 1 where ids[r, t + 1] is to be predicted from ids[r, :t + 1]; the last column is 0.
    """

    ids: Tensor
    mask: Tensor

    def num_targets(self) -> int:
        return int(self.mask.sum())


Rows = Callable[[int], Share]


def full_mask(ids: np.ndarray) -> np.ndarray:
    """Every token but a row's first is predicted: packed text has no padding."""
    mask = np.ones(ids.shape, dtype=np.float32)
    mask[:, -1] = 0.0
    return mask


def rows_of(order: Order, world: World) -> Rows:
    """This rank's rows: a contiguous block of the global batch, so that the split never changes what is in a step."""

    def share(step: int) -> Share:
        count = order.global_batch // world.size
        files, windows = order.places(step)
        mine = slice(world.rank * count, (world.rank + 1) * count)
        ids = read_rows(order.files, files[mine], windows[mine], order.seq_len)
        return Share(torch.from_numpy(ids), torch.from_numpy(full_mask(ids)))

    return share


def read_rows(files: Sequence[TokenFile], numbers: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
    """Window windows[r] of file numbers[r] as row r: (row, seq_len) int64."""
    ids = np.empty((len(numbers), seq_len), np.int64)
    for number in np.unique(numbers):
        mine = numbers == number
        ids[mine] = files[number].windows(windows[mine], seq_len)
    return ids


def micro_batches(share: Share, size: int, tokens: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """(ids, weights, is_last) per micro-batch on the device; weights = mask / tokens, tokens counted over all ranks."""
    weights = share.mask / tokens
    for start in range(0, len(share.ids), size):
        part = slice(start, start + size)
        yield _move(share.ids[part], device), _move(weights[part], device), start + size >= len(share.ids)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def choose_micro_batch(asked: int | None, batch: int, world: int, seq_len: int, device: torch.device) -> int:
    """Rows per forward pass on one device, a divisor of its share. Unasked: the largest within a token budget.

    The budget only has to fill the device: 16 thousand tokens keep a GPU busy, 4 thousand stay in a CPU's caches.
    """
    if batch % world:
        raise MinitronError(
            f"--batch {batch} does not divide over {world} processes",
            f"use a multiple of {world}, e.g. {-(-batch // world) * world}",
        )
    rows = batch // world
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    if asked is not None:
        if asked not in divisors:
            raise MinitronError(
                f"--batch {batch} is {rows} sequences per process, which does not divide into micro-batches of {asked}",
                f"--micro-batch can be {', '.join(map(str, divisors[-12:]))}",
            )
        return asked
    budget = 16384 if device.type == "cuda" else 4096
    return max([d for d in divisors if d * seq_len <= budget], default=1)
