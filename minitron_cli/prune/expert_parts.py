"""One expert's part of a tensor, whether it is stored apart or fused with others."""

from dataclasses import dataclass
from math import prod

import numpy as np

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.checkpoint.codes import Transposed
from minitron_cli.checkpoint.headers import TensorInfo
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.values import read_bits
from minitron_cli.spec.axes import Dim
from minitron_cli.spec.family import Match


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """A run of a tensor: its first element, its shape and what its dimensions are."""

    info: TensorInfo
    first: int
    shape: tuple[int, ...]
    dims: tuple[Dim, ...]

    def bits(self) -> np.ndarray:
        """As it is stored."""
        return read_bits(self.info, self.first, prod(self.shape)).reshape(self.shape)

    def values(self) -> np.ndarray:
        """In float32, float64 where that is stored."""
        values = from_bits(self.bits(), self.info.dtype)
        return values.astype(np.float64 if self.info.dtype == "F64" else np.float32, copy=False)

    def write(self, values: np.ndarray) -> None:
        """Write values in the place of what is stored, rounded once."""
        turned = isinstance(self.info.codes, Transposed)
        assert turned or self.info.codes is None, f"{self.info.name} is quantised"
        begin, _ = self.info.span(self.first, prod(self.shape))
        with self.info.file.open("r+b") as stream:
            stream.seek(begin)
            stream.write(np.ascontiguousarray(to_bits(values.T if turned else values, self.info.dtype)).data)


def part_of(checkpoint: Checkpoint, match: Match, expert: int) -> ExpertPart:
    """The part of `expert` in the tensor of a line, which has to be that expert's where it is stored apart."""
    assert match.expert in (None, expert), f"{match.name} is not of expert {expert}"
    info = checkpoint.tensors[match.name]
    if match.expert is not None:
        return ExpertPart(info, 0, info.shape, match.weight.dims)
    return ExpertPart(info, expert * prod(info.shape[1:]), info.shape[1:], part_dims(match))


def part_dims(match: Match) -> tuple[Dim, ...]:
    """The dimensions of one expert's part of a line."""
    return match.weight.dims if match.expert is not None else match.weight.dims[1:]
