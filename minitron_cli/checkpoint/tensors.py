"""Read one tensor from its bytes: a memory map of the whole file would count in full against a memory limit."""

import torch

from minitron_cli.checkpoint.headers import TensorInfo

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """The tensor as it is stored, on the CPU, in memory of its own."""
    data = torch.empty(info.num_bytes, dtype=torch.uint8)
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.begin)
        view, filled = memoryview(data.numpy().data), 0
        while filled < info.num_bytes:
            count = stream.readinto(view[filled:])
            assert count, f"{info.file} ends inside {info.name}"  # headers were checked against the file's size
            filled += count
    return data.view(DTYPES[info.dtype]).reshape(info.shape)
