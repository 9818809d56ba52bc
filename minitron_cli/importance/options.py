"""What a measurement is asked to do, checked before anything is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import context_length, sequence_length
from minitron_cli.importance.aggregate import Aggregation

METRICS = ("activation", "wanda", "magnitude", "random")
PASS_METRICS = ("activation", "wanda")  # those that need forward passes over data
DEPTH_METRICS = ("loss", "kl", "mse")
MODES = ("auto", "resident", "stream")
DEFAULT_SEQ_LEN = 4096  # NVIDIA's released code; shorter where the model's context is


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement. `seq_len` None is the model's context up to 4096; `batch_size` None is chosen by size.

    `depth_blocks` are the sizes of contiguous blocks to drop, `depth_greedy` how many layers to drop one by one;
    `depth_task` names the task that judges the blocks in the place of `depth_metric`; `layer_score` is what ranks
    single layers: block influence, or a depth metric. `memory` caps what may be used.
    """

    data: tuple[str, ...] = ()
    samples: int = 1024
    seq_len: int | None = None
    batch_size: int | None = None
    batch_agg: str = "l2"
    seq_agg: str = "mean"
    metric: str = "activation"
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    separator: str = "auto"
    text_field: str | None = None
    allow_fewer: bool = False
    padded: bool = False
    force: bool = False
    mode: str = "auto"
    device_map: str | None = None
    memory: int | None = None
    depth_blocks: tuple[int, ...] = ()
    depth_metric: str = "loss"
    depth_task: str | None = None
    depth_greedy: int = 0
    depth_samples: int = 256
    layer_score: str = "influence"
    second_moments: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise MinitronError(f"--metric {self.metric!r} is unknown", f"one of {', '.join(METRICS)}")
        for flag, choice, allowed in (
            ("depth-metric", self.depth_metric, DEPTH_METRICS),
            ("layer-score", self.layer_score, ("influence", *DEPTH_METRICS)),
            ("mode", self.mode, MODES),
        ):
            if choice not in allowed:
                raise MinitronError(f"--{flag} {choice!r} is unknown", f"one of {', '.join(allowed)}")
        for flag, value in (
            ("samples", self.samples),
            ("seq-len", self.seq_len),
            ("batch-size", self.batch_size),
            ("depth-samples", self.depth_samples),
            *(("depth-block", size) for size in self.depth_blocks),
        ):
            if value is not None and value < 1:
                raise MinitronError(f"--{flag} {value} is not a count", f"give --{flag} 1 or more")
        if self.depth_task and not self.depth_blocks:
            raise MinitronError("--depth-task needs the sizes of the blocks to drop", "add --depth-block N")
        if self.wants_depth and not self.needs_data:
            raise MinitronError(
                f"--metric {self.metric} makes no forward passes to measure depth with", "use --metric activation"
            )
        if self.second_moments and not self.needs_data:
            raise MinitronError(
                f"--metric {self.metric} makes no forward passes, which Gram matrices need",
                "use --metric activation",
            )
        if self.needs_data and not self.data:
            raise MinitronError(
                "there is no calibration data: activations are measured on text",
                "add --data FILE (jsonl, parquet, txt, a token directory) or a datasets name such as "
                "wikitext:wikitext-2-raw-v1:train, or compare with --metric magnitude, which needs none",
            )

    @property
    def needs_data(self) -> bool:
        return self.metric in PASS_METRICS

    @property
    def curves(self) -> tuple[tuple[str, int], ...]:
        """The sweeps asked for: (metric, block size)."""
        wanted = [(self.depth_task or self.depth_metric, size) for size in self.depth_blocks]
        if self.layer_score != "influence":
            wanted.append((self.layer_score, 1))
        return tuple(dict.fromkeys(wanted))

    @property
    def wants_depth(self) -> bool:
        return bool(self.curves or self.depth_greedy)

    @property
    def aggregation(self) -> Aggregation:
        return Aggregation(self.batch_agg, self.seq_agg)


def sample_length(config: Mapping[str, Any], options: Options, name: str) -> int:
    """Tokens per sample; a length beyond the context of the model `name` is refused."""
    return sequence_length(options.seq_len, DEFAULT_SEQ_LEN, {name: context_length(config)})
