"""The arms and cuts of `tests.benchmarks.real`, as tables. A cut says which share of an axis stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Arm:
    """One way to make a student: more words for the `importance`, `prune` and `distill` lines; what it measures on."""

    name: str
    importance: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()
    distill: tuple[str, ...] = ()
    samples: int | None = None
    domains: tuple[str, ...] = ()


Cut = Mapping[str, Fraction]  # flag -> the share that stays


@dataclass(frozen=True)
class Table:
    about: str
    cuts: tuple[Cut, ...]
    arms: tuple[Arm, ...]


def sizes(cut: Cut, config: Mapping[str, int]) -> dict[str, int]:
    """The cut's sizes in a model with this config: {"hidden": 504}. Hidden sizes are multiples of the heads."""
    source = {
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
    }
    unit = {"hidden": config["num_attention_heads"]}
    return {flag: round(source[flag] * share / unit.get(flag, 1)) * unit.get(flag, 1) for flag, share in cut.items()}


def applies(arm: "Arm", cut: Cut) -> bool:
    """Whether an arm says anything of a cut: compensation is of widths, selection by residual of the FFN."""
    return not ("--compensate" in arm.prune and "layers" in cut) and not ("--select" in arm.prune and "ffn" not in cut)


def cut_of(**shares: str) -> Cut:
    return {flag: Fraction(share) for flag, share in shares.items()}


LEAST = ("--compensate", "least-squares")
RESIDUAL = (*LEAST, "--select", "residual")
ROTATED = ("--rotate",)
GRAM = ("--second-moments",)
NARROW = cut_of(hidden="7/8", ffn="3/4")  # SmolLM2-135M: 504 and 1152, 100M, -25%
WIDTHS = (
    cut_of(ffn="3/4"),
    cut_of(heads="2/3"),
    cut_of(hidden="29/32"),
    cut_of(hidden="15/16", ffn="5/6"),  # -15% of the parameters
    cut_of(hidden="27/32", ffn="17/24"),  # -30%
)
DEPTHS = (cut_of(layers="13/15"), cut_of(layers="11/15"))


def _aggregated(batch: str, seq: str) -> Arm:
    return Arm(f"({batch}, {seq})", ("--batch-agg", batch, "--seq-agg", seq))


TABLES: dict[str, Table] = {
    "criterion": Table(
        "what decides which units stay",
        WIDTHS,
        (
            _aggregated("l2", "mean"),
            _aggregated("l2", "l2"),
            _aggregated("l2", "var"),
            Arm("wanda", ("--metric", "wanda")),
            Arm("magnitude", ("--metric", "magnitude")),
            Arm("random", ("--metric", "random")),
            Arm("compensated", GRAM, LEAST),
            Arm("compensated, by residual", GRAM, RESIDUAL),
        ),
    ),
    "rotation": Table(
        "channels or directions of the residual stream, at equal parameters",
        (cut_of(hidden="63/64"), cut_of(hidden="7/8"), NARROW),
        (
            Arm("compensated", GRAM, LEAST),
            Arm("rotated", GRAM, (*LEAST, *ROTATED)),
            Arm("compensated, by residual", GRAM, RESIDUAL),
            Arm("rotated, by residual", GRAM, (*RESIDUAL, *ROTATED)),
        ),
    ),
    "depth": Table(
        "which layers stay",
        DEPTHS,
        (
            Arm("block influence"),
            Arm("loss without each", ("--depth-block", "1", "--layer-score", "loss", "--depth-samples", "64")),
            Arm("KL without each", ("--depth-block", "1", "--layer-score", "kl", "--depth-samples", "64")),
        ),
    ),
    "shape": Table(
        "width, depth or the FFN alone at equal parameters (100M, -25%)",
        (NARROW, cut_of(ffn="109/192"), cut_of(layers="2/3")),
        (Arm("plain"), Arm("compensated, by residual", GRAM, RESIDUAL)),
    ),
    "calibration": Table(
        "how much calibration text, and which",
        (NARROW,),
        (
            *(Arm(f"{n} samples", samples=n) for n in (64, 256, 1024)),
            Arm("256 samples, padded", ("--padded",)),
            *(Arm(f"256 samples of {domain}", domains=(domain,)) for domain in ("github", "wiki")),
            *(Arm(f"compensated, {n} samples", GRAM, RESIDUAL, samples=n) for n in (64, 256, 1024)),
            *(Arm(f"compensated, 256 of {d}", GRAM, RESIDUAL, domains=(d,)) for d in ("github", "wiki")),
        ),
    ),
    "loss": Table(
        "what the student is trained on",
        (NARROW, cut_of(layers="4/5")),
        (
            Arm("KL", distill=("--loss", "logits")),
            Arm("KL and cross-entropy", distill=("--loss", "logits", "--ce-weight", "0.25")),
            Arm("KL and hidden states", distill=("--loss", "logits+hidden")),
        ),
    ),
    "recipe": Table(
        "the paper's recipe against the compensated cut",
        (NARROW,),
        (
            Arm("paper", ("--batch-agg", "l2", "--seq-agg", "mean"), (), ("--loss", "logits")),
            Arm("compensated, by residual", GRAM, RESIDUAL, ("--loss", "logits")),
            Arm("rotated, by residual", GRAM, (*RESIDUAL, *ROTATED), ("--loss", "logits")),
        ),
    ),
}
