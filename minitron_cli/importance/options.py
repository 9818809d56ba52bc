"""What a measurement is asked to do, checked before anything is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from minitron_cli.data.tokenizer import SEPARATORS
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import CALIBRATION_LENGTH, context_length, sequence_length
from minitron_cli.importance.aggregate import BATCH, EXPERT_SCORES, Aggregation
from minitron_cli.importance.sums import SEQ
from minitron_cli.spec.limits import SEED, OneOf, count, require

METRICS = ("activation", "wanda", "magnitude", "random")
PASS_METRICS = ("activation", "wanda")  # those that need forward passes over data
DEPTH_METRICS = ("loss", "kl", "mse")
BY_NORMS = "norm-ratio"
LAYER_SCORES = ("influence", BY_NORMS, *DEPTH_METRICS)
MODES = ("auto", "resident", "stream")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement. `seq_len` None is the model's context up to 4096; `batch_size` None is chosen by size.

    `depth_blocks` are the sizes of contiguous blocks to drop, `depth_greedy` how many layers to drop one by one;
    `depth_task` names the task that judges the blocks in the place of `depth_metric`; `layer_score` is what ranks
    single layers: block influence, the ratio of the norms around a block, or a depth metric; `expert_score` is what
    ranks whole experts, `expert_damage` measures what dropping each would change. `dequantize` takes a
    model with quantised weights. `memory` caps what may be used.
    """

    data: tuple[str, ...] = ()
    samples: Annotated[int, count(1, 10**9)] = 1024
    seq_len: Annotated[int | None, count(1, 2**24)] = None
    batch_size: Annotated[int | None, count(1, 2**20)] = None
    batch_agg: Annotated[str, OneOf(BATCH)] = "l2"
    seq_agg: Annotated[str, OneOf(SEQ)] = "mean"
    metric: Annotated[str, OneOf(METRICS)] = "activation"
    seed: Annotated[int, SEED] = 0
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16", "float16"))] = "auto"
    device: str = "auto"
    separator: Annotated[str, OneOf(SEPARATORS)] = "auto"
    text_field: str | None = None
    allow_fewer: bool = False
    padded: bool = False
    force: bool = False
    mode: Annotated[str, OneOf(MODES)] = "auto"
    device_map: Annotated[str | None, OneOf(DEVICE_MAPS)] = None
    memory: Annotated[int | None, count(1)] = None
    depth_blocks: Annotated[tuple[int, ...], count(1)] = ()
    depth_metric: Annotated[str, OneOf(DEPTH_METRICS)] = "loss"
    depth_task: str | None = None
    depth_greedy: Annotated[int, count(0)] = 0
    depth_samples: Annotated[int, count(1, 10**9)] = 256
    layer_score: Annotated[str, OneOf(LAYER_SCORES)] = "influence"
    expert_score: Annotated[str, OneOf(EXPERT_SCORES)] = "activation"
    expert_damage: bool = False
    second_moments: bool = False
    dequantize: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(self, "importance", flag)
        if self.dequantize and self.device_map:
            raise MinitronError(
                "--device-map is for what transformers loads, which dequantised weights are not",
                "use --mode stream, or write the plain model first: minitron prune MODEL --dequantize -o OUT",
            )
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
        if (self.expert_damage or self.expert_score != "activation") and not self.needs_data:
            raise MinitronError(
                f"--metric {self.metric} makes no forward passes, which --expert-score and --expert-damage need",
                "use --metric activation",
            )
        if self.needs_data and not self.data:
            raise MinitronError(
                "there is no calibration data: activations are measured on text",
                "add --data FILE (jsonl, parquet, txt, a token directory) or a datasets name such as "
                "wikitext:wikitext-2-raw-v1:train, or compare with --metric magnitude, which needs none",
            )

    @property
    def dequantized_to(self) -> str | None:
        """The type that quantised weights are given; None where the model has to be plain."""
        return "bfloat16" if self.dequantize else None

    @property
    def needs_data(self) -> bool:
        return self.metric in PASS_METRICS

    @property
    def curves(self) -> tuple[tuple[str, int], ...]:
        """The sweeps asked for: (metric, block size)."""
        wanted = [(self.depth_task or self.depth_metric, size) for size in self.depth_blocks]
        if self.layer_score in DEPTH_METRICS:
            wanted.append((self.layer_score, 1))
        return tuple(dict.fromkeys(wanted))

    @property
    def wants_depth(self) -> bool:
        return bool(self.curves or self.depth_greedy)

    @property
    def aggregation(self) -> Aggregation:
        return Aggregation(self.batch_agg, self.seq_agg, self.expert_score)

    @property
    def wants_damage(self) -> bool:
        return self.expert_damage or self.expert_score == "damage"


def sample_length(config: Mapping[str, Any], options: Options, name: str) -> int:
    """Tokens per sample; a length beyond the context of the model `name` is refused."""
    return sequence_length(options.seq_len, CALIBRATION_LENGTH, {name: context_length(config)})


def flag(field: str) -> str:
    """The option that sets a field."""
    return "--" + {"depth_blocks": "depth_block"}.get(field, field).replace("_", "-")
