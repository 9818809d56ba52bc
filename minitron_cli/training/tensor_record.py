"""Records of tensors that have their rows in common."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Its fields, which a subclass has, are tensors or None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The record of which every tensor is changed: rows are cut out, added, or moved."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: None if value is None else change(value) for name, value in values.items()})

    def at(self, rows: Tensor) -> Self:
        """Some of the rows."""
        return self.each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self.each(lambda tensor: tensor.to(device))
