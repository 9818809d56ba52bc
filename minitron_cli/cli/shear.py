"""`minitron shear`: learn which units stay, together with the weights, and cut to exactly that shape."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import examples
from minitron_cli.cli.parameters import command_of, model
from minitron_cli.cli.training_verbs import launch

NAME = "shear"
EXAMPLES = examples(
    "minitron shear Llama-2-7b --hidden 2048 --ffn 5504 --heads 16 --layers 24 --preset sheared-llama --data tokens/",
    "minitron shear large --hidden 96 --ffn 256 --data train.jsonl --steps 400 --loss logits --scores s.safetensors",
)


def _act(given: Mapping[str, Any]) -> int:
    from minitron_cli.training.options import of_shear

    return launch(NAME, {**of_shear(given["model"], given), "export_step": None})


_LOSS = (o.masked_loss(), *o.without(o.LOSS, "loss", "hidden_loss", "layer_map"))
_TEACHER_AT = o.only("teacher_dtype", "teacher_device", "shard_teacher")
_OPTIMIZER = o.without(o.OPTIMIZER, "branch_from")
_RUNNING = o.without(o.RUNNING, "compile", "export_at", "export_step")
_PARAMETERS = (
    model("MODEL", "the model to train: a directory or a hub id"),
    *o.sizes(),
    *o.DATA,
    *o.LENGTH,
    *o.MASKS,
    *_LOSS,
    *_TEACHER_AT,
    *_OPTIMIZER,
    *_RUNNING,
)
_SIZES = [p.name for p in o.sizes() if p.name not in ("hidden", "ffn", "heads", "layers")]
PANELS = {"More sizes": _SIZES, **o.panels_of(_PARAMETERS, o.FIRST - {"tokens", "seq_len"})}
defaults = o.defaults
command = command_of(
    _PARAMETERS,
    "Learn which units stay, and cut to exactly that shape. Masks are trained with the weights (Sheared-LLaMA).",
    _act,
)
