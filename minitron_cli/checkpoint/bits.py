"""Stored bits as numbers and back, without torch: numpy has no bfloat16."""

import numpy as np

from minitron_cli.errors import MinitronError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def from_bits(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bits as floating-point numbers; bf16 becomes float32, exactly."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype not in _DTYPES:
        raise MinitronError(
            f"weights stored as {dtype} cannot be rescaled, which this cut needs (of this family's width, or with "
            "compensation)",
            "convert the checkpoint to bfloat16 first, or leave that part of the cut out",
        )
    return raw.view(_DTYPES[dtype])


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floating-point numbers as the bits of `dtype`, rounded to nearest even."""
    if dtype == "BF16":
        bits = values.astype(np.float32, copy=False).view(np.uint32)
        rounded = bits >> 16
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= 16
        nan = np.isnan(values)
        # Rounding may carry a NaN's payload into infinity; keep it a NaN.
        return (np.where(nan, (bits >> 16) | 0x40, rounded) if nan.any() else rounded).astype(np.uint16)
    return values.astype(_DTYPES[dtype]).view(f"u{np.dtype(_DTYPES[dtype]).itemsize}")
