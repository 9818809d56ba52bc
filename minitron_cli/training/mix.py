"""A mix that follows the student's losses: what is asked for, checked, and kept up to date while a run goes on.

The weights that were computed so far are phases of the order, and the checkpoint holds them: which rows a step reads
remains a function of the seed, the step and those phases.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from minitron_cli.data.dynamic import reweighted, without
from minitron_cli.data.order import Order
from minitron_cli.data.schedule import Phase
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.training.inputs import Models
from minitron_cli.training.loop import StepRefused
from minitron_cli.training.options import Options
from minitron_cli.training.reference_file import references_for
from minitron_cli.training.state import MixHistory
from minitron_cli.training.validation import held_out_names, num_windows

# A share at which a domain has all but taken over: its reference is likely out of reach.
_TAKEN_OVER = 0.8


@dataclass(frozen=True, slots=True)
class Mixing:
    """How a mix is updated: after every `every` steps, from the held-out loss `measured[d]` of each domain d."""

    domains: tuple[str, ...]
    measured: tuple[str, ...]
    references: tuple[float, ...]
    every: int
    rate: float
    floor: float
    on_exhausted: str
    held_out: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return ", ".join(
            f"{domain} towards {reference:.4f} on {name.removeprefix('eval_ce/')}"
            for domain, name, reference in zip(self.domains, self.measured, self.references)
        )

    def digest(self) -> str:
        """What decides the weights beside the options of a run."""
        decisive = {name: value for name, value in asdict(self).items() if name in ("references", "held_out")}
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def mixing_of(options: Options, models: Models, order: object, held_out: Sequence[TokenFile]) -> Mixing | None:
    """The mixing that a run asks for, None with fixed weights; what cannot be mixed is refused."""
    if options.mix != "dynamic":
        return None
    assert isinstance(order, Order)
    assert options.mix_every is not None
    assert options.reference_losses is not None
    names = tuple(source.name for source in parse_sources(options.data))
    if len(names) < 2 or len(held_out) != len(names):
        raise MinitronError(
            f"--mix dynamic: {len(names)} --data and {len(held_out)} --eval-data",
            "give every domain as a --data of its own, and its held-out text as the --eval-data in the same place",
        )
    if len(set(names)) < len(names):
        raise MinitronError(f"--mix dynamic: two --data are called {_twice(names)}", "rename one of the files")
    measured = held_out_names(held_out)
    references = references_for(Path(options.reference_losses), held_out, measured, options, models.tokenizer)
    sets = tuple((file.header.tokens_sha256, num_windows(file, options)) for file in held_out)
    mixing = Mixing(
        names, tuple(f"eval_ce/{name}" for name in measured), references, options.mix_every, options.mix_rate,
        options.mix_floor, options.on_exhausted or "error", sets,
    )  # fmt: skip
    rows, windows = (options.steps or 0) * options.batch, sum(_windows(order))
    if mixing.on_exhausted == "error" and rows > windows:
        raise MinitronError(
            f"{rows:,} rows are to be read once and the data has {windows:,}",
            "train for fewer steps, give more --data, or --on-exhausted repeat",
        )
    Mixer(order, mixing, options.steps or 0)
    return mixing


class Mixer:
    """The order of a run as far as its weights are known; `history` are the weights by the step they hold from."""

    def __init__(self, order: Order, mixing: Mixing, steps: int) -> None:
        self.mixing = mixing
        self.history: MixHistory = ()
        self._steps = steps
        whole = sum(order.weights)
        start = self._admitted(order, 0, tuple(weight / whole for weight in order.weights))
        self.order = self._start = replace(order, weights=start)

    def restore(self, history: MixHistory) -> None:
        """Go on with the weights that a checkpoint holds."""
        self.history = history
        starts, weights = zip((0, self._start.weights), *history)
        self.order = replace(self._start, weights=weights[-1], phases=tuple(map(Phase, starts[1:], weights[:-1])))

    def due(self, step: int) -> bool:
        """Whether the weights of the steps from `step` on are still to be computed."""
        last = self.history[-1][0] if self.history else 0
        return step % self.mixing.every == 0 and last < step < self._steps

    def update(self, step: int, losses: Mapping[str, float]) -> dict[str, float]:
        """Weights for the steps from `step` on, by the losses measured there; what to log, by domain."""
        mixing = self.mixing
        found = [losses[name] for name in mixing.measured]
        if not np.isfinite(found).all():
            raise StepRefused(
                f"the mix cannot follow losses that are not finite after step {step}", "is the student diverging?"
            )
        weights = reweighted(self.order.weights, found, mixing.references, mixing.rate, mixing.floor)
        self.restore((*self.history, (step, self._admitted(self.order, step, weights))))
        logged = {}
        for i, name in enumerate(mixing.domains):
            logged[f"mix_weight/{name}"] = self.order.weights[i]
            logged[f"mix_excess/{name}"] = found[i] - mixing.references[i]
            logged[f"mix_passes/{name}"] = float(self.order.epochs(step)[i])
        return logged

    def taken_over(self) -> str | None:
        """A warning where one domain has all but taken over."""
        most = int(np.argmax(self.order.weights))
        if self.order.weights[most] < _TAKEN_OVER:
            return None
        return (
            f"warning: {self.mixing.domains[most]} is {self.order.weights[most]:.0%} of the mix: if its reference loss "
            f"of {self.mixing.references[most]:.3f} is out of reach, lower --mix-rate or raise --mix-floor"
        )

    def _admitted(self, order: Order, step: int, weights: tuple[float, ...]) -> tuple[float, ...]:
        """The weights, unless domains would run out before the next update: then what --on-exhausted says."""
        policy = self.mixing.on_exhausted
        while policy != "repeat" and (short := self._short(order, step, weights)):
            if policy == "error":
                named = ", ".join(f"{self.mixing.domains[i]} ({_windows(order)[i]:,} windows)" for i in short)
                raise StepRefused(
                    f"the mix would read {named} to the end before step {self._next(step)}",
                    "give more --data, or type the line again with --on-exhausted repeat or --on-exhausted drop-domain",
                )
            weights = without(weights, short)
        return weights

    def _short(self, order: Order, step: int, weights: tuple[float, ...]) -> list[int]:
        """The domains of which there is not enough until the next update."""
        phases = (*order.phases, Phase(step, order.weights)) if step else ()
        used = replace(order, weights=weights, phases=phases).used(self._next(step))
        return [i for i, count in enumerate(_windows(order)) if weights[i] and used[i] > count]

    def _next(self, step: int) -> int:
        return min(step + self.mixing.every, self._steps)


def _windows(order: Order) -> list[int]:
    return [file.num_windows(order.seq_len) for file in order.files]


def _twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
