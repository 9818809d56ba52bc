"""What a prune is asked for, checked against itself. Light: the command line reads its defaults from here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.spec.flags import typed_fields

MERGES = ("none", "m-smoe", "nearest", "cluster")  # what becomes of experts that go (see `merge`)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """All that `minitron prune` can be told. A field is named as its flag, and None where nothing was asked.

    `hidden` to `experts_per_token` are sizes to keep, `params` a number of parameters to end at instead of them.
    `vocab` tokens stay, also beside `params`, or as many as `vocab_coverage` of the tokens of `data` need; those of the
    file `keep_tokens` do in any case. With `keep_pattern` the layers that stay begin the source's own order of kinds of
    layers, in whole periods.
    `scores` rank what stays; where they are needed and absent, `samples` of `seq_len` tokens of `data` are measured
    first. `expert_merge` says what becomes of the experts that go, `expert_refit` how many of those that stay are
    refitted together, on the same text. `moments` are of the compensation, `select` says how neurons are chosen under
    it, `ridge` is that of either refit (None: 1e-2 for inputs, the best by held-out error for experts). With
    `text_only` the text model of a model of text and images comes out alone. `dequantize` takes a quantised source,
    whose weights become `dtype` (None: bfloat16). With either no size need be given. Without `output` the result is
    named after the model and its new sizes.
    """

    model: str
    target: str | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    layers: int | None = None
    drop_layers: str | None = None
    keep_pattern: bool = False
    experts: int | None = None
    expert_ffn: int | None = None
    shared_ffn: int | None = None
    experts_per_token: int | None = None
    expert_merge: str = "none"
    expert_refit: str = "none"
    vocab: int | None = None
    vocab_coverage: str | None = None
    keep_tokens: Path | None = None
    value_heads: int | None = None
    key_heads: int | None = None
    mamba_heads: int | None = None
    mamba_head_dim: int | None = None
    params: int | None = None
    multiple_of: int = 1
    scores: Path | None = None
    data: tuple[str, ...] = ()
    samples: int = 1024
    seq_len: int | None = None
    compensate: str = "none"
    moments: Path | None = None
    ridge: str | None = None
    select: str = "scores"
    rotate: bool = False
    text_only: bool = False
    dequantize: bool = False
    dtype: str | None = None
    output: Path | None = None
    max_shard_size: int = 5_000_000_000
    check: bool = False
    force: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for flag, count in (("multiple-of", self.multiple_of), ("samples", self.samples), ("seq-len", self.seq_len),
                            ("max-shard-size", self.max_shard_size), ("params", self.params)):  # fmt: skip
            if count is not None and count < 1:
                raise MinitronError(f"--{flag} {count} is too small", f"give --{flag} 1 or more")
        from minitron_cli.checkpoint.quantised import DTYPES
        from minitron_cli.prune.compensate import check_request
        from minitron_cli.prune.target import check_kind
        from minitron_cli.spec.axes import COUNTED_AXES

        check_request(self.compensate, self.ridge_of_inputs, self.select, self.rotate)
        if self.expert_merge not in MERGES:
            raise MinitronError(f"--expert-merge {self.expert_merge!r} is unknown", f"one of {', '.join(MERGES)}")
        if self.merges and self.experts is None:
            raise MinitronError("--expert-merge merges experts that go, and none do", "add --experts N")
        if self.merges and self.compensates:
            raise MinitronError(
                "--expert-merge does not go with --compensate: a merged expert's neurons are not those that the Gram "
                "matrices were measured of",
                "prune twice: merge experts, measure the result with --second-moments, then compensate",
            )
        self._check_refit()
        if self.moments is not None and not self.compensates:
            raise MinitronError("--moments is for compensation, and there is none", "add --compensate least-squares")
        if self.params is not None and (self.sizes.keys() - COUNTED_AXES or self.drop_layers or self.target):
            raise MinitronError(
                "--params chooses the whole shape but its vocabulary; it does not go with other sizes of your own",
                "give either --params or the sizes; `minitron search` finds shapes with some sizes fixed",
            )
        self._check_vocabulary()
        if self.keep_pattern and self.layers is None and self.drop_layers is None and self.params is None:
            raise MinitronError("--keep-pattern is for cuts of depth", "add --layers N, --drop-layers or --params")
        if self.dtype is not None and not self.dequantize:
            raise MinitronError("--dtype is that of dequantised weights, and there are none", "add --dequantize")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise MinitronError(f"--dtype {self.dtype!r} is unknown", f"one of {', '.join(DTYPES)}")
        if self.params is None:
            counted = {} if self.vocab_coverage is None else {"vocab": 0}
            sizes = self.sizes | counted
            if sizes or self.drop_layers is not None or self.target is not None or not self.changes_uncut:
                check_kind(self.target, sizes, self.drop_layers is not None)

    def _check_vocabulary(self) -> None:
        from minitron_cli.data.vocabulary.choose import parse_coverage

        if self.vocab_coverage is not None:
            parse_coverage(self.vocab_coverage)
            if self.vocab is not None or self.params is not None:
                raise MinitronError(
                    f"--vocab-coverage chooses a size, and --{'params' if self.params else 'vocab'} does so too",
                    "give only one of them",
                )
        if self.keep_tokens is not None and not self.cuts_vocabulary:
            raise MinitronError("--keep-tokens is for a cut of the vocabulary", "add --vocab N or --vocab-coverage")
        if self.cuts_vocabulary and not self.data:
            raise MinitronError("--vocab needs text to count tokens on", "add --data TEXT like what the model is for")
        if self.cuts_vocabulary and self.rotate:
            raise MinitronError(
                "--rotate and --vocab do not go together", "cut the vocabulary in a prune of its own, before or after"
            )

    def _check_refit(self) -> None:
        if self.refits and not self.data:
            raise MinitronError("--expert-refit runs both models on text, and there is none", "add --data TEXT")
        if self.refits and self.cuts_vocabulary:
            raise MinitronError(
                "--expert-refit and --vocab do not go together: the two models would read other tokens",
                "cut the vocabulary in a prune of its own, before or after",
            )

    @property
    def cuts_vocabulary(self) -> bool:
        return self.vocab is not None or self.vocab_coverage is not None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes asked for, by axis."""
        from minitron_cli.spec.axes import FLAG_OF_AXIS

        found = {axis: getattr(self, flag.replace("-", "_")) for axis, flag in FLAG_OF_AXIS.items()}
        return {axis: size for axis, size in found.items() if size is not None}

    @property
    def changes_uncut(self) -> bool:
        """Whether there is something to write where nothing is cut."""
        return self.text_only or self.dequantize

    @property
    def dequantized_to(self) -> str | None:
        """The type that quantised weights are given; None where the source has to be plain."""
        return (self.dtype or "bfloat16") if self.dequantize else None

    @property
    def compensates(self) -> bool:
        return self.compensate != "none"

    @property
    def merges(self) -> bool:
        return self.expert_merge != "none"

    @property
    def refits(self) -> bool:
        return parse_together(self.expert_refit) != 0

    @property
    def ridge_of_inputs(self) -> str:
        return self.ridge or "1e-2"

    @property
    def ridge_of_experts(self) -> str:
        return self.ridge or "auto"

    @property
    def compensation_options(self) -> dict[str, bool] | None:
        """What decides the cost of compensation (see `compensation_cost`), None without it."""
        return {"rotate": self.rotate, "residual": self.select == "residual"} if self.compensates else None

    def scores_file(self, output: Path) -> Path:
        """The scores that are read, or that are measured first and kept beside the output."""
        return self.scores or scores_beside(output)

    def moments_directory(self, output: Path) -> Path:
        """The input Gram matrices of the compensation: given, or beside the scores."""
        from minitron_cli.checkpoint.moments_file import moments_path

        return self.moments or moments_path(self.scores_file(output))


def request_from_options(model: str, options: Mapping[str, object]) -> PruneRequest:
    """A request from flags as a recipe writes them: {"kv-heads": 8, "params": "4B", "rotate": True}."""
    flags = [field.name.replace("_", "-") for field in fields(PruneRequest) if field.name != "model"]
    if unknown := [flag for flag in options if flag not in flags]:
        raise MinitronError(f"prune has no option --{unknown[0]}", near_matches(unknown[0], flags))
    return PruneRequest(model=model, **typed_fields(PruneRequest, options))


def parse_together(text: str) -> int | None:
    """Of --expert-refit: "all" -> None, "8" -> 8; "none" -> 0."""
    if text in ("none", "all"):
        return 0 if text == "none" else None
    if not text.isdecimal() or int(text) < 1:
        raise MinitronError(
            f"--expert-refit {text!r} is not a number of experts", "give all, none, or how many are refitted together"
        )
    return int(text)


def scores_beside(output: Path) -> Path:
    """Where the scores of an output are kept that were measured for it."""
    return output.with_name(output.name + ".scores.safetensors")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Scores that have to be measured before the cut, and where they are kept."""

    model: str
    data: tuple[str, ...]
    output: Path
    samples: int
    seq_len: int | None
    second_moments: bool
    dequantize: bool = False
