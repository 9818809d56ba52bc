"""What merging experts adds to a prune, from shapes alone."""

from minitron_cli.hf.readers import EXPERT, EXPERT_FFN
from minitron_cli.prune.compensation_cost import FLOPS_PER_SECOND
from minitron_cli.prune.preflight import BYTES_PER_SECOND
from minitron_cli.spec.shape import Shape

ASSIGNMENT = 5e-11  # seconds per cubed number of neurons, scipy's solver on one core


def merge_cost(source: Shape, target: Shape) -> tuple[float, int]:
    """(seconds, bytes at the peak) that matching and averaging add, as `compensation_cost` counts products.

    Each expert that goes is read three times, or the one it joins is; neurons are multiplied with neurons and assigned.
    """
    neurons, values = source[EXPERT_FFN], 3 * source[EXPERT_FFN] * source["hidden"]
    one = 2 * neurons * values / FLOPS_PER_SECOND + ASSIGNMENT * neurons**3 + 3 * 4 * values / BYTES_PER_SECOND
    many = len(target.layers_of(EXPERT)) * (source[EXPERT] - target[EXPERT])
    return many * one, 2 * 4 * values + 3 * 8 * neurons**2
