"""`minitron distill`: train a student towards a teacher's distribution."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import examples
from minitron_cli.cli.parameters import command_of, model
from minitron_cli.cli.training_verbs import RECORDING, launch, record
from minitron_cli.errors import MinitronError

NAME = "distill"
EXAMPLES = examples(
    "minitron distill small --teacher meta-llama/Llama-3.1-8B --data tokens/ --tokens 1B -o small-distilled",
    "minitron distill small --teacher big --data a.jsonl:0.7 --data code/:0.3 --preset llama-3.1-minitron --nproc 8",
)


def _act(given: Mapping[str, Any]) -> int:
    from minitron_cli.training.cached_logits.store import is_recording
    from minitron_cli.training.defaults import is_address, split_share

    plain = {name: value for name, value in given.items() if name not in RECORDING}
    if given["record_teacher"] is not None:
        return record(plain, given["record_teacher"], *(() if given["record"] is None else (given["record"],)))
    if given["record"] is not None:
        raise MinitronError("--record says what --record-teacher DIR writes", "give --record-teacher DIR too")
    teachers = [split_share(teacher)[0] for teacher in given["teacher"] or ()]
    if given["top_k"] is not None and not any(is_address(one) or is_recording(Path(one)) for one in teachers):
        raise MinitronError(
            "--top-k says how much of a teacher is recorded, or asked of a server",
            "leave it out, or give --record-teacher DIR too",
        )
    return launch(NAME, plain)


_PARAMETERS = (
    model("STUDENT", "the model to train: a directory or a hub id"),
    *o.TEACHER,
    *o.DATA,
    *o.LENGTH,
    *o.LOSS,
    *o.TEACHER_AT,
    *o.OPTIMIZER,
    *o.RUNNING,
)
PANELS, defaults = o.panels_of(_PARAMETERS), o.defaults
command = command_of(
    _PARAMETERS,
    "Train a student to predict as its teacher does. The same command resumes an interrupted run.",
    _act,
)
