"""The stretches of a run: which steps read how many rows of how many tokens. `--phase` makes several."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron_cli.data.schedule import Phase
from minitron_cli.errors import MinitronError
from minitron_cli.training.options import Options


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps from `first` up to `until` (None: without end): `batch` rows of `seq_len` tokens each.

    A device takes `micro_batch` rows at a time, and a token costs `flops_per_token`, once both are known.
    """

    first: int
    until: int | None
    batch: int
    seq_len: int
    micro_batch: int = 1
    flops_per_token: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.seq_len

    @property
    def steps(self) -> int:
        assert self.until is not None, "the run's end is known"
        return self.until - self.first

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    def __str__(self) -> str:
        return f"{self.steps:,} steps x {self.batch:,} sequences x {self.seq_len:,} tokens"


def stretches_of(options: Options) -> tuple[Stretch, ...]:
    """The stretches that `options`, whose length is settled, describe; neighbours of equal sizes are one."""
    assert options.seq_len is not None
    found: list[Stretch] = []
    first, end = 0, options.steps
    for until, _, batch, seq_len in (*parse_phases(options), Phase(0)):
        last = end if not until else until if end is None else min(until, end)
        if last is not None and last <= first:
            continue
        sizes = batch or options.batch, seq_len or options.seq_len
        if found and (found[-1].batch, found[-1].seq_len) == sizes:
            found[-1] = Stretch(found[-1].first, last, *sizes)
        else:
            found.append(Stretch(first, last, *sizes))
        first = last or first
    return tuple(found)


def stretch_at(stretches: Sequence[Stretch], step: int) -> Stretch:
    """The stretch that a step lies in."""
    return next(s for s in reversed(stretches) if s.first <= step)


def steps_of_tokens(options: Options, tokens: int, *, at_most: bool = False) -> int:
    """How many steps read `tokens`: at least that many, or `at_most`."""
    for stretch in stretches_of(options):
        if stretch.until is None or tokens < stretch.tokens:
            break
        tokens -= stretch.tokens
    whole, rest = divmod(tokens, stretch.tokens_per_step)
    return stretch.first + whole + (rest > 0 and not at_most)


def parse_phases(options: Options) -> tuple[Phase, ...]:
    """The `--phase` values; one that changes the rows, not only their mixture, must leave steps after it."""
    phases = tuple(_phase(spec) for spec in options.phases)
    late = [phase.until for phase in phases if any(phase[2:]) and phase.until >= (options.steps or phase.until + 1)]
    if late:
        raise MinitronError(
            f"a --phase until step {late[0]} leaves no step for --seq-len and --batch: the run has {options.steps}",
            "give more --steps or shorter phases: --seq-len and --batch apply after the last phase",
        )
    return phases


def _phase(spec: str) -> Phase:
    """`1000:0.7,0.3,batch=64,seq-len=4096`: until step 1000 the sources are mixed 0.7 to 0.3, in 64 rows of 4096."""
    until, _, rest = spec.partition(":")
    parts = [part.strip() for part in rest.split(",")]
    named = [part.split("=", 1) for part in parts if "=" in part]
    try:
        sizes = {name: int(value.replace("_", "")) for name, value in named}
        weights = tuple(float(part) for part in parts if "=" not in part)
        readable = sizes.keys() <= {"batch", "seq-len"} and len(sizes) == len(named)
        readable = readable and sizes.get("batch", 1) > 0 and sizes.get("seq-len", 2) > 1
        phase = Phase(int(until.replace("_", "")), weights or None, sizes.get("batch"), sizes.get("seq-len"))
    except ValueError:
        readable = False
    if not readable:
        raise MinitronError(
            f"--phase {spec!r} cannot be read",
            "write it as STEP:WEIGHT,... (one weight per --data), STEP:batch=N,seq-len=N, or with both",
        )
    return phase
