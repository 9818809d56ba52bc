"""A pseudo-random permutation of [0, n) computed index by index: no table, no state, the same on every machine.

An alternating Feistel network over the smallest power of two that holds n, walked along its cycles until it lands
inside (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Every round is invertible, so the whole is a
bijection for every n, and 10^9 windows cost as little as ten. It mixes for statistics, not for secrecy.
"""

import numpy as np

_ROUNDS = 8
_MASK = (1 << 64) - 1
# Below this the halves have too few bits to mix well; walking back from here costs little.
_MIN_BITS = 6


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Images of `indices` (any shape, values in [0, n)) under permutation `key` of [0, n): int64."""
    assert n > 0, "a permutation of nothing"
    bits = max((n - 1).bit_length(), _MIN_BITS)
    keys = [derive(key, round_index) for round_index in range(_ROUNDS)]
    found = _feistel(np.asarray(indices, np.uint64), bits, keys)
    outside = found >= n
    while outside.any():
        found[outside] = _feistel(found[outside], bits, keys)
        outside = found >= n
    return found.astype(np.int64)


def derive(*parts: int) -> int:
    """One 64-bit key from several integers (seed, domain, epoch, ...), each of which changes it altogether."""
    state = 0
    for part in parts:
        state = _mix_int((state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK)
    return state


def _feistel(values: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
    """One pass over the two halves of `bits` bits; each round changes one half by a function of the other."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for round_index, key in enumerate(keys):
        if round_index % 2:
            low = low ^ (_mix(high, key) & low_mask)
        else:
            high = high ^ (_mix(low, key) & high_mask)
    return (high << low_bits) | low


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) over values + key, modulo 2^64."""
    mixed = values + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
