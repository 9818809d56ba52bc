"""`minitron train`: the trainer of `distill` without a teacher."""

from functools import partial

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import examples
from minitron_cli.cli.parameters import command_of, model
from minitron_cli.cli.training_verbs import launch

NAME = "train"
EXAMPLES = examples(
    "minitron train Llama-3.1-8B --data tokens/ --preset teacher-correction -o Llama-3.1-8B-corrected",
    "minitron train small --from-scratch --data stories.jsonl --steps 2000 --lr 1e-3 -o small-trained",
)

_PARAMETERS = (
    model("MODEL", "the model to train: a directory or a hub id"),
    *o.FROM_SCRATCH,
    *o.DATA,
    *o.LENGTH,
    *o.OPTIMIZER,
    *o.RUNNING,
)
PANELS, defaults = o.panels_of(_PARAMETERS), o.defaults
command = command_of(
    _PARAMETERS,
    "Train a model on text, without a teacher. For teacher correction, continued pre-training, or from scratch; the "
    "same command resumes a run.",
    partial(launch, NAME),
)
