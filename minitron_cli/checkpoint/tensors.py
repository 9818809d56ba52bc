"""Read tensors from their bytes: a memory map of the whole file would count in full against a memory limit."""

from pathlib import Path

import torch

from minitron_cli.checkpoint.headers import TensorInfo

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
STORAGE_TYPES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """The tensor as it is stored, on the CPU, in memory of its own."""
    data = torch.empty(info.num_bytes, dtype=torch.uint8)
    read_bytes(info.file, info.begin, memoryview(data.numpy().data))
    return data.view(DTYPES[info.dtype]).reshape(info.shape)


def read_bytes(file: Path, begin: int, into: memoryview) -> None:
    """Fill `into` with the bytes of `file` from `begin` on; the file must hold them."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        filled = 0
        while filled < len(into):
            count = stream.readinto(into[filled:])
            assert count, f"{file} ends at byte {begin + filled}"  # headers were checked against the file's size
            filled += count


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
