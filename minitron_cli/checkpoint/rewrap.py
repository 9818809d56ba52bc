"""A trained text model goes back into the model of text and images that it was taken from."""

from collections.abc import Callable
from pathlib import Path

from minitron_cli.checkpoint.architecture import beside_bytes
from minitron_cli.checkpoint.codes import Transposed, transposed
from minitron_cli.checkpoint.headers import TensorInfo
from minitron_cli.checkpoint.reader import list_tensors, open_checkpoint, wrapper_around
from minitron_cli.checkpoint.values import read_bits
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, shard_names, shards, write_index

_BLOCK = 16 << 20


def room(origin: Path, text_bytes: int) -> int:
    """Bytes that `rewrap` takes on disk beside the text model's own: a second copy of it, and what stands around it.

    0 where nothing does.
    """
    if wrapper_around(origin) is None:
        return 0
    checkpoint = open_checkpoint(origin)
    return text_bytes + beside_bytes(checkpoint, checkpoint.shape)


def is_usual(origin: Path) -> bool:
    """Whether `origin` stores its text model in the layout that text models of its type usually have on disk.

    Otherwise it stores it as transformers holds it in memory.
    """
    checkpoint = open_checkpoint(origin)
    used = {match.weight.layout for match in checkpoint.matches.values()} - {None}
    return used <= {next(iter(checkpoint.family.layouts()), None)}


def rewrap(text: Path, origin: Path, directory: Path) -> None:
    """Write the weights of `origin` to `directory`, those of its text model being the ones in `text`, a directory too.

    Names are spelled as `origin` spells them; what stands beside the text model is copied byte for byte.
    """
    checkpoint = open_checkpoint(origin)
    sources = {
        checkpoint.on_disk(name): transposed(info) if _is_transposed(checkpoint.tensors.get(name)) else info
        for name, info in list_tensors(text).items()
    }
    sources |= {name: checkpoint.tensors[name] for name in checkpoint.beside}
    parts = shards([TensorOut(name, info.dtype, info.shape) for name, info in sources.items()])
    for file, part in zip(shard_names(len(parts)), parts):
        with (directory / file).open("wb") as stream:
            stream.write(header_bytes(part))
            for tensor in part:
                _copy(sources[tensor.name], stream.write)
    write_index(directory, parts)


def _is_transposed(info: TensorInfo | None) -> bool:
    return info is not None and isinstance(info.codes, Transposed)


def _copy(info: TensorInfo, write: Callable[[bytes], object]) -> None:
    if info.codes is not None:
        write(read_bits(info).tobytes())
        return
    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        for at in range(0, info.num_bytes, _BLOCK):
            write(stream.read(min(_BLOCK, info.num_bytes - at)))
