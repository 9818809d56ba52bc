"""The trained student as a Hugging Face checkpoint: weights in their stored type, config and tokenizer as they were."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.carried import carry
from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.checkpoint.provenance import write_manifest
from minitron_cli.checkpoint.reader import load_whole_config, text_tensors, wrapper_around
from minitron_cli.checkpoint.rewrap import is_usual, rewrap, room
from minitron_cli.checkpoint.tensors import DTYPES as STORED
from minitron_cli.checkpoint.wrapping import TEXT
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import DTYPES, dtype_name
from minitron_cli.hf.load import load_config as hf_config
from minitron_cli.hf.quiet import quiet
from minitron_cli.training.state import load_weights, model_tensors
from minitron_cli.training.step import KDStep

STUDENT = "student."
EXPORTED = "exported"  # in a run directory: the students of --export-at
MASKED = "masked"  # in a run directory: the student of learned masks before it is trimmed, its masks in its weights


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that was trained: its directory, where its tokenizer is, and whether its own code may run."""

    model: Path
    tokenizer: Path
    trust_remote_code: bool = False


def export_dtype(source: Path, asked: str | None) -> torch.dtype:
    """The type to store: as asked, else the one that most of the source's weights are in, else float32."""
    if asked is not None:
        if asked not in DTYPES:
            raise MinitronError(
                f"--export-dtype must be one of {', '.join(DTYPES)}; got {asked!r}",
                "leave it out to keep the student's",
            )
        return DTYPES[asked]
    if not list(source.glob("*.safetensors")):
        return torch.float32
    sizes: Counter[str] = Counter()
    for info in text_tensors(source).values():
        sizes[info.dtype] += info.num_bytes
    most = STORED[sizes.most_common(1)[0][0]]
    return most if most in DTYPES.values() else torch.float32


def gather(step: KDStep, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """The student's tensors whole, on the CPU, in `dtype` (a collective; empty on ranks that do not `keep` them)."""
    found: dict[str, Tensor] = {}
    absorb = step.absorber()
    for name, value in model_tensors(step).items():
        if name.startswith(STUDENT):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                own = name.removeprefix(STUDENT)
                found[own] = _cast(absorb(own, whole), dtype).cpu()
    return found


def from_checkpoint(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The student's tensors at a saved step, read without building anything."""
    prefix = f"model.{STUDENT}"
    return {name.removeprefix(prefix): _cast(tensor, dtype) for name, tensor in load_weights(path, prefix)}


def write_model(directory: Path, origin: Origin, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Fill an empty directory with a checkpoint that plain `from_pretrained` loads; `tensors` hold each weight once.

    A text model goes back into what its origin has around it, whose weights stay as they are.
    """
    wrapped = wrapper_around(origin.model) is not None
    written = sum(t.numel() * t.element_size() for t in tensors.values())
    need_space(directory / "model.safetensors", written + room(origin.model, written))
    shell = _shell(origin, dtype)
    first = {id(p): name for name, p in shell.named_parameters()}
    tied = {name: first[id(p)] for name, p in shell.named_parameters(remove_duplicate=False)}
    shell.load_state_dict({**tensors, **{name: tensors[stored] for name, stored in tied.items()}}, assign=True)
    shell.tie_weights()
    with write_errors(directory / "model.safetensors"), quiet():
        if wrapped:
            text = directory / ".text"
            shell.save_pretrained(text, save_original_format=is_usual(origin.model))
            rewrap(text, origin.model, directory)
            shutil.rmtree(text)
        else:
            shell.save_pretrained(directory)
        # transformers has written its own version of the config; the source's is kept, since nothing in it changed.
        (directory / "generation_config.json").unlink(missing_ok=True)
        (directory / "config.json").write_text(json.dumps(_config(origin.model, dtype), indent=2) + "\n")
        for place in (origin.tokenizer, origin.model):
            carry(place, directory, text_only=not wrapped and wrapper_around(place) is not None)


def publish(finished: Path, output: Path) -> None:
    """Move a complete checkpoint's files into the output, the manifest last: with it the output is finished."""
    names = sorted((p.name for p in finished.iterdir()), key=lambda name: name == MANIFEST)
    for name in names:
        (finished / name).replace(output / name)
    finished.rmdir()


def export(
    output: Path, origin: Origin, tensors: Mapping[str, Tensor], dtype: torch.dtype, manifest: Mapping[str, Any],
    check: Callable[[Path], None] = lambda directory: None,
    trim: Callable[[Path, Path], None] | None = None,
) -> None:  # fmt: skip
    """Write the checkpoint beside its place, `check` it, and publish it into `output`, where the run directory is.

    With `trim`, the whole checkpoint is written to OUT/run/masked, where it stays; `trim(whole, place)` writes the
    result from it.
    """
    finished = output / "run" / ".export"
    whole = finished if trim is None else output / "run" / MASKED
    for directory in {finished, whole}:
        shutil.rmtree(directory, ignore_errors=True)
    whole.mkdir(parents=True)
    write_model(whole, origin, tensors, dtype)
    if trim is None:
        check(whole)
        write_manifest(whole, **manifest)
    else:
        write_manifest(whole, **manifest)
        trim(whole, finished)
        check(finished)
    publish(finished, output)


def _shell(origin: Origin, dtype: torch.dtype) -> Any:
    """The model class without memory behind it: it knows how names on disk are spelled and what is tied."""
    from transformers import AutoModelForCausalLM

    code = origin.trust_remote_code
    config = hf_config(origin.model, code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=code)


def _config(source: Path, dtype: torch.dtype) -> dict[str, Any]:
    config = load_whole_config(source)
    name = dtype_name(dtype)
    if isinstance(text := config.get(TEXT), dict):
        config[TEXT] = text | {key: name for key in ("torch_dtype", "dtype") if key in text}
    return {**config, "torch_dtype" if "torch_dtype" in config else "dtype": name}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
