"""The actual cost of a step, read from its output, to compare with the estimate.

It is kept in the run's own state and in family.json, never in an artefact: artefacts are the same to the byte between
runs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.chain.estimate import Estimate
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import list_tensors
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.hf.memory import DEVICE_PEAK
from minitron_cli.prune.request import scores_beside
from minitron_cli.spec.recipe import VERBS, Step
from minitron_cli.training.metrics import read_metrics


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, and the most bytes that its process had resident (0: not known)."""

    code: int
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ActualCost:
    """A finished step, in the units of the estimate.

    `memory_bytes` is the most that training held on a GPU, 0 where there is none; `host_bytes` the most that the
    process of any step had resident, with interpreter and libraries. `disk_bytes` are the weights, `all_bytes` every
    file, saved steps too.
    """

    tokens: int
    flops: float
    disk_bytes: int
    all_bytes: int
    memory_bytes: int
    host_bytes: int


def estimate_facts(cost: Estimate) -> dict[str, Any]:
    """The estimate as it is kept: what can be compared with `ActualCost`."""
    keys = ("tokens", "flops", "disk_bytes", "working_bytes", "memory_bytes")
    return {key: getattr(cost, key) for key in keys}


def actual_cost(step: Step, output: Path, cost: Estimate, host_bytes: int) -> dict[str, Any]:
    """Count what is at `output` after the step has finished."""
    tokens, flops = _work(step, output, cost)
    weights = sum(t.num_bytes for t in list_tensors(output).values()) if (output / "config.json").is_file() else 0
    files = [output] if output.is_file() else [f for f in output.rglob("*") if f.is_file()]
    whole = sum(f.stat().st_size for f in files)
    memory = max((line.get(DEVICE_PEAK, 0) for line in read_metrics(output / "run")), default=0)
    return asdict(ActualCost(tokens, flops, weights, whole, memory, host_bytes))


def _work(step: Step, output: Path, cost: Estimate) -> tuple[int, float]:
    """Tokens that were read, and the FLOPs they cost."""
    if VERBS[step.verb].trains:
        training = (read_manifest(output) or {}).get("training") or {}
        return int(training.get("tokens", 0)), float(training.get("flops", 0.0))
    scores = output if step.verb == "importance" else scores_beside(output)
    if cost.tokens and scores.is_file():
        provenance = read_scores(scores)[0].provenance
        tokens = int(provenance.get("samples_seen", 0)) * int(provenance.get("seq_len", 0))
        return tokens, cost.flops / cost.tokens * tokens
    return 0, 0.0
