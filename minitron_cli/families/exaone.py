"""EXAONE 4: norms after each half of a block and none before, and a norm on each head's queries and keys."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, POST_NORMED
from minitron_cli.families.olmo import POST_NORMS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.assumptions import Config, head_size, one_in
from minitron_cli.spec.family import Assumption, family
from minitron_cli.spec.shape import Shape


def _slides_at_64(config: Config, shape: Shape) -> str:
    if (listed := config.get("layer_types")) is None or ("sliding_attention" in listed) == (shape["layer"] == 64):
        return ""
    return "sliding windows are taken to be in the model of 64 layers, and in no other"


EXAONE4 = family(
    "exaone4",
    ["exaone4"],
    MODEL + ATTENTION + QK_NORM + GATED_MLP + POST_NORMS,
    unrotated=POST_NORMED,
    engines=(
        head_size("llama.cpp"),
        one_in("sliding_window_pattern", "full_attention", "SGLang", "MLX"),
        Assumption(("llama.cpp",), _slides_at_64),
    ),
)
