"""Records of tensors that have their rows in common."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """The base of records whose fields are all tensors, with the same rows, or None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy in which `change` has been applied to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: None if value is None else change(value) for name, value in values.items()})

    def at(self, rows: Tensor) -> Self:
        """A copy with these rows alone."""
        return self.each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        """A copy on a device."""
        return self.each(lambda tensor: tensor.to(device))
