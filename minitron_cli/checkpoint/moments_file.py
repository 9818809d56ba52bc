"""Input Gram matrices on disk: a directory with one safetensors file per layer, and an index of the inputs.

    scores.moments/moments.json              identity, and for every input the weights that read it
    scores.moments/layer-00000.safetensors   one packed array per distinct input of the layer
    scores.moments/outside.safetensors       the output of the final norm, which the head reads

The moments of even and of odd samples are kept apart, so that a solution found on one half can be judged by the other.
Both are symmetric: they share one array (n, n + 1), the even one in its lower triangle, the odd one right of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.checkpoint.seal import DIGEST, require_unaltered, sealed
from minitron_cli.errors import MinitronError

INDEX = "moments.json"


@dataclass(frozen=True, slots=True)
class Input:
    """One distinct input: the disk names of the weights that read it, its tokens per half, and where its sums are.

    Of experts that share one tensor on disk each has an input of its own.
    """

    axis: str
    layer: int | None
    readers: tuple[str, ...]
    tokens: tuple[int, int]
    file: str = ""
    tensor: str = ""
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """An opened directory; nothing but its index has been read."""

    path: Path
    identity: Mapping[str, Any]
    inputs: tuple[Input, ...]
    files: Mapping[str, str]  # sha256 by name
    _checked: set[str] = field(default_factory=set, compare=False)
    _inputs_of: dict[str, list[Input]] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for one in self.inputs:
            for reader in one.readers:
                self._inputs_of.setdefault(reader, []).append(one)

    def of(self, reader: str, expert: int | None = None) -> Input | None:
        """The input that a weight reads, or an expert by its part of one; None where it was not recorded."""
        return next((one for one in self._inputs_of.get(reader, ()) if one.expert in (None, expert)), None)

    def read(self, one: Input) -> np.ndarray:
        """E[x x^T] over each half's tokens: (half, n, n) float64; zeros for a half without tokens."""
        return unpack(self._packed(one)) / np.maximum(one.tokens, 1)[:, None, None]

    def check(self, name: str) -> None:
        """Compare a file with its digest in the index, once."""
        if name in self._checked:
            return
        file = self.path / name
        if not file.is_file():
            raise MinitronError(f"{file} is missing", "measure again with --second-moments")
        if name not in self.files or file_digest(file) != self.files[name]:
            raise MinitronError(
                f"{file} is not the file that was measured (sha256 differs)", "measure again with --second-moments"
            )
        self._checked.add(name)

    def mean(self, one: Input) -> np.ndarray:
        """E[x x^T] over all tokens: (n, n) float64."""
        packed = self._packed(one)
        total = np.tril(packed[:, :-1]).astype(np.float64)
        total += np.triu(packed[:, 1:]).T
        total += np.tril(total, -1).T
        total /= max(sum(one.tokens), 1)
        return total

    def _packed(self, one: Input) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        self.check(one.file)
        try:
            with safe_open(self.path / one.file, framework="numpy") as stream:
                return stream.get_tensor(one.tensor)
        except (SafetensorError, OSError) as error:
            raise MinitronError(
                f"{self.path / one.file} cannot be read: {error}", "measure again with --second-moments"
            ) from error


def pack(sums: np.ndarray) -> np.ndarray:
    """(2, n, n) symmetric, of which the upper triangles are read -> (n, n + 1) float32."""
    packed = np.zeros((sums.shape[1], sums.shape[1] + 1), np.float32)
    packed[:, :-1] = np.triu(sums[0]).T
    packed[:, 1:] += np.triu(sums[1])
    return packed


def unpack(packed: np.ndarray) -> np.ndarray:
    """(n, n + 1) -> (2, n, n) float64, symmetric."""
    even, odd = np.tril(packed[:, :-1].astype(np.float64)), np.triu(packed[:, 1:].astype(np.float64))
    return np.stack([even + np.tril(even, -1).T, odd + np.triu(odd, 1).T])


def write_inputs(directory: Path, layer: int | None, found: Iterable[tuple[Input, np.ndarray]]) -> list[Input]:
    """Write one layer's inputs with their sums (2, n, n), of which upper triangles are read; say where each is."""
    from safetensors.numpy import save

    file = "outside.safetensors" if layer is None else f"layer-{layer:05d}.safetensors"
    arrays: dict[str, np.ndarray] = {}
    inputs = []
    for one, sums in found:
        name = f"{one.axis}.{sum(key.startswith(one.axis + '.') for key in arrays)}"
        arrays[name] = pack(sums)
        inputs.append(replace(one, file=file, tensor=name))
    # Not save_file, which makes files that only their owner can read.
    (directory / file).write_bytes(save(arrays))
    return inputs


def write_index(directory: Path, identity: Mapping[str, Any], inputs: Iterable[Input]) -> None:
    """Write the index, last: a directory that has it is complete."""
    inputs = list(inputs)
    files = {name: file_digest(directory / name) for name in sorted({one.file for one in inputs})}
    content = {**identity, "files": files, "inputs": [asdict(one) for one in inputs]}
    (directory / INDEX).write_text(json.dumps(sealed(content), indent=1, sort_keys=True) + "\n")


def open_moments(path: Path) -> Moments:
    """Open by the index alone; a directory of another kind is refused by name."""
    file = path / INDEX
    if not file.is_file():
        raise MinitronError(
            f"there are no input Gram matrices at {path}",
            "measure them with `minitron importance MODEL --second-moments`",
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        require_unaltered(content, file)
        content.pop(DIGEST, None)
        inputs = tuple(
            Input(**{**one, "readers": tuple(one["readers"]), "tokens": tuple(one["tokens"])})
            for one in content.pop("inputs")
        )
        files = content.pop("files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MinitronError(
            f"{file} is not an index of input Gram matrices ({error})", "measure again with --second-moments"
        ) from error
    return Moments(path, content, inputs, files)


def moments_digest(path: Path) -> str:
    """Identity of the moments: sha256 of the index, which holds those of the files."""
    return hashlib.sha256((path / INDEX).read_bytes()).hexdigest()


def moments_path(scores: Path) -> Path:
    """Where the Gram matrices of a scores file are: beside it."""
    return scores.with_name(scores.name.removesuffix(".safetensors") + ".moments")
