"""EXAONE 4: norms after each half of a block and none before, and a norm on each head's queries and keys."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL
from minitron_cli.families.olmo import POST_NORMS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.family import family

EXAONE4 = family("exaone4", ["exaone4"], MODEL + ATTENTION + QK_NORM + GATED_MLP + POST_NORMS)
