"""`minitron train`: the trainer of `distill` without a teacher."""

from functools import partial

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import examples
from minitron_cli.cli.training_verbs import launch

NAME = "train"
EXAMPLES = examples(
    "minitron train Llama-3.1-8B --data tokens/ --preset teacher-correction -o Llama-3.1-8B-corrected",
    "minitron train small --from-scratch --data stories.jsonl --steps 2000 --lr 1e-3 -o small-trained",
)

_PARAMETERS = (o.model("MODEL"), *o.FROM_SCRATCH, *o.DATA, *o.LENGTH, *o.OPTIMIZER, *o.RUNNING)
PANELS, defaults = o.panels_of(_PARAMETERS), o.defaults
command = o.command_of(
    _PARAMETERS,
    "Train MODEL on text: teacher correction, continued pre-training, from scratch. The same line again goes on.",
    partial(launch, NAME),
)
