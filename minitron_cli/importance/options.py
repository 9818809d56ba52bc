"""What a measurement is asked to do, checked before anything is read."""

from dataclasses import dataclass

from minitron_cli.errors import MinitronError
from minitron_cli.importance.aggregate import Aggregation

METRICS = ("activation", "wanda", "magnitude", "random")
PASS_METRICS = ("activation", "wanda")  # those that need forward passes over data
DEFAULT_SEQ_LEN = 4096  # NVIDIA's released code; shorter where the model's context is


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement. `seq_len` None is the model's context up to 4096; `batch_size` None is chosen by size."""

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

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise MinitronError(f"--metric {self.metric!r} is unknown", f"one of {', '.join(METRICS)}")
        for flag, value in (("samples", self.samples), ("seq-len", self.seq_len), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise MinitronError(f"--{flag} {value} is not a count", f"give --{flag} 1 or more")
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
    def aggregation(self) -> Aggregation:
        return Aggregation(self.batch_agg, self.seq_agg)
