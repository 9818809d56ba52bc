"""What a student is asked to minimise, as one value, and the recipe's rule for choosing it."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron_cli.errors import MinitronError, near_matches

KINDS = ("forward_kl", "reverse_kl", "jsd", "soft_ce")
TERMS = ("logits", "logits+hidden", "logits+embedding", "logits+hidden+embedding")
METRICS = ("cosine", "mse")
# The embedding counts as the block before the first.
EMBEDDING = -1


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence at which temperature; the value and the gradient carry T^2 (Hinton et al., arXiv 1503.02531).

    forward_kl  KL(q || p), the recipe's default           reverse_kl  KL(p || q)
    jsd         beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p   (GKD, arXiv 2306.13649, eq. 1)
    soft_ce     -sum q log p: forward KL plus the teacher's entropy, the same gradient
    """

    kind: str = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MinitronError(f"unknown divergence {self.kind!r}", near_matches(self.kind, KINDS))
        if not self.temperature > 0:
            raise MinitronError(f"temperature is {self.temperature}", "give a number above 0; the recipe's is 1")
        if not 0 < self.beta < 1:
            raise MinitronError(
                f"beta of the Jensen-Shannon divergence is {self.beta}",
                "give 0 < beta < 1; forward_kl and reverse_kl are the divergences that belong to the ends",
            )


FORWARD_KL = Divergence()


@dataclass(frozen=True, slots=True)
class Objective:
    """loss = kd_weight * kd + ce_weight * ce + alpha * (hidden + embedding), means over the tokens of the global batch.

    hidden is the mean over `layer_map`, pairs (student block, teacher block) counted from 0; embedding the same for the
    pair (-1, -1). alpha None is dynamic: kd / (hidden + embedding) of the previous step (Minitron, arXiv 2407.14679,
    section 3). `shares` weights several teachers; `vocab` compares only the first ids of heads padded differently.
    """

    divergence: Divergence = FORWARD_KL
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    layer_map: tuple[tuple[int, int], ...] = ()
    embedding: bool = False
    metric: str = "cosine"
    alpha: float | None = None
    shares: tuple[float, ...] = ()
    vocab: int | None = None
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        faults = [] if self.metric in METRICS else [f"hidden loss {self.metric!r} is not one of {', '.join(METRICS)}"]
        numbers = {"kd weight": self.kd_weight, "ce weight": self.ce_weight, "alpha": self.alpha or 0.0}
        faults += [f"{name} is {value}, below 0" for name, value in numbers.items() if not value >= 0]
        faults += [f"a teacher's share is {share}, not above 0" for share in self.shares if not share > 0]
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            faults.append(f"{self.chunk_tokens} tokens per chunk")
        if faults:
            raise MinitronError("; ".join(faults), "see the loss options in --help")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every pair of states compared, the embedding's first."""
        return ((EMBEDDING, EMBEDDING), *self.layer_map) if self.embedding else self.layer_map


LOGITS_ONLY = Objective()


def auto_terms(student_layers: int, teacher_layers: int) -> str:
    """Logits alone, unless a quarter of the depth or more was cut (arXiv 2407.14679, section 4.1, practices 5 to 7)."""
    return "logits+hidden+embedding" if student_layers <= 0.75 * teacher_layers else "logits"


def build_objective(
    terms: str,
    student_layers: int,
    teacher_layers: int,
    *,
    layer_map: Sequence[str] = (),
    kept_layers: Sequence[int] | None = None,
    divergence: Divergence = FORWARD_KL,
    ce_weight: float = 0.0,
    metric: str = "cosine",
    shares: Sequence[float] = (),
    vocab: int | None = None,
) -> Objective:
    """The objective named by `terms` (one of TERMS, or auto), its layer map resolved for these depths."""
    if terms == "auto":
        terms = auto_terms(student_layers, teacher_layers)
    if terms not in TERMS:
        raise MinitronError(f"unknown loss {terms!r}", f"one of auto, {', '.join(TERMS)}")
    parts = terms.split("+")
    if layer_map and "hidden" not in parts:
        raise MinitronError(
            f"a layer map is given, but the loss {terms} compares no layers", "add --loss logits+hidden"
        )
    pairs = resolve_layer_map(layer_map, student_layers, teacher_layers, kept_layers) if "hidden" in parts else ()
    return Objective(
        divergence=divergence,
        ce_weight=ce_weight,
        layer_map=pairs,
        embedding="embedding" in parts,
        metric=metric,
        shares=tuple(shares),
        vocab=vocab,
    )


def resolve_layer_map(
    entries: Sequence[str], student_layers: int, teacher_layers: int, kept_layers: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """Pairs (student block, teacher block), 0-based, from entries like `13:29`; negative numbers count from the end.

    Without entries the blocks two before the last are paired, the best of the paper (teacher 29 with student 13 for 32
    and 16 blocks, arXiv 2407.14679, table 17). The entry `kept` pairs each student block with the one it was cut from.
    """
    if not entries:
        return ((max(student_layers - 3, 0), max(teacher_layers - 3, 0)),)
    if list(entries) == ["kept"]:
        kept = range(teacher_layers) if kept_layers is None else kept_layers
        if len(kept) != student_layers:
            raise MinitronError(
                f"a layer map from the kept layers needs the student's plan: it has {student_layers} blocks, "
                f"the teacher {teacher_layers}",
                "distil from the model the student was pruned from, or give pairs such as --layer-map 13:29",
            )
        return tuple((block, int(source)) for block, source in enumerate(kept))
    pairs = [_pair(entry, student_layers, teacher_layers) for entry in entries]
    if bad := [entry for entry, pair in zip(entries, pairs) if pair is None]:
        raise MinitronError(
            f"not a pair of blocks: {', '.join(bad)}",
            f"give STUDENT:TEACHER with student 0 to {student_layers - 1} and teacher 0 to {teacher_layers - 1}",
        )
    return tuple(pair for pair in pairs if pair is not None)


def _pair(entry: str, student_layers: int, teacher_layers: int) -> tuple[int, int] | None:
    try:
        student, teacher = (int(part) for part in entry.split(":"))
    except ValueError:
        return None
    if not (-student_layers <= student < student_layers and -teacher_layers <= teacher < teacher_layers):
        return None
    return student % student_layers, teacher % teacher_layers
