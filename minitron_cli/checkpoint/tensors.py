"""The values of a tensor as torch holds them."""

from math import prod

import numpy as np
import torch

from minitron_cli.checkpoint.headers import TensorInfo
from minitron_cli.checkpoint.values import read_bits

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
STORAGE_TYPES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """The whole tensor, on the CPU, in memory of its own."""
    return read_elements(info, 0, prod(info.shape)).reshape(info.shape)


def read_elements(info: TensorInfo, first: int, count: int) -> torch.Tensor:
    """`count` elements in row-major order from index `first` on: (count,)."""
    return torch.from_numpy(read_bits(info, first, count).view(np.uint8)).view(DTYPES[info.dtype])


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
