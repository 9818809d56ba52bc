"""Learned masks as a term of the loss: log-alphas and multipliers trained beside the weights, in the one trainer.

loss = the objective of the masked model + sum over axes of mean over rows of l1 (s - t) + l2 (s - t)^2, where s is the
expected share of masked units of a row and t its target, which rises linearly from 0 over the warm-up (Sheared-LLaMA,
arXiv 2310.06694, section 2.1, with the released code's rates and clamp). Multipliers ascend, log-alphas descend. There
is one draw a step, the same in all micro-batches and ranks, so that neither matters. In evaluation mode nothing is
drawn: the units that the target of the moment asks for stay, the largest log-alphas of each row.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.axes import FLAG_OF_AXIS
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape
from minitron_cli.training.masks.concrete import EPSILON, LIMIT, alive, penalty, sample, settled
from minitron_cli.training.masks.gates import Gate, gates_of, plan_of, ranks
from minitron_cli.training.masks.hooks import install
from minitron_cli.training.masks.wiring import Wiring, by_axis, wire
from minitron_cli.training.terms import Context, ParamGroup, Term

# With scores, the last of a row starts this far below the first.
SPREAD = 2.6


class Gates(nn.Module):
    """What is trained: log-alphas of every gate, and its two multipliers; float32, whatever the student is in."""

    def __init__(self, gates: Sequence[Gate], start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.gates = tuple(gates)
        self.log_alpha = nn.ParameterDict({gate.axis: nn.Parameter(start[gate.axis].float()) for gate in gates})
        self.multipliers = nn.ParameterDict({gate.axis: nn.Parameter(torch.zeros(2)) for gate in gates})

    def forward(
        self, draws: Mapping[str, Tensor] | None, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Masks by gate, and by name "penalty" (a sum) and each gate's "gap_AXIS", both scalars.

        `draws` are uniform (None: settled masks); `progress` is the part of the way from no target to the whole one.
        """
        masks, values = {}, {"penalty": torch.zeros(())}
        living: dict[str, Tensor] = {gate.axis: alive(self.log_alpha[gate.axis]) for gate in self.gates}
        for gate in self.gates:
            log_alpha = self.log_alpha[gate.axis]
            keep = gate.units - round(progress * (gate.units - gate.keep))
            masks[gate.axis] = settled(log_alpha, keep) if draws is None else sample(log_alpha, draws[gate.axis])
            above = 1 - living[gate.axis].mean(-1).flatten() - progress * gate.target
            weights = self._row_weights(gate, living).to(above.device)
            values["penalty"] = values["penalty"].to(above.device) + penalty(
                above, self.multipliers[gate.axis], weights
            )
            values[f"gap_{gate.axis}"] = (weights * above).sum().detach()
        return masks, values

    def _row_weights(self, gate: Gate, living: Mapping[str, Tensor]) -> Tensor:
        """How much each row counts (row,), in sum 1: as much as the layer, expert or KV group around it is probable."""
        shape = gate.sizes[:-1]
        weights = torch.ones(shape)
        if "layer" in gate.scope:
            weights[[layer for layer in range(shape[0]) if layer not in gate.layers]] = 0
        for end, axis in enumerate(gate.scope, 1):
            if axis in living:
                outer = living[axis].detach()
                assert outer.ndim == end, f"{axis} does not lie in the scope of {gate.axis}"
                weights = weights.to(outer.device) * outer.view(*outer.shape, *(1,) * (len(shape) - end))
        return (weights / weights.sum()).flatten()


class Masks(Term):
    """The masks between a student in memory and a target shape; `masked` by hooks from the first forward of a step on.

    `rates` are those of the log-alphas and of the multipliers, as multiples of the weights' learning rate.
    """

    name = "masks"
    updates: Tensor

    def __init__(
        self, student: Any, source: Shape, target: Shape, *, rates: tuple[float, float], warmup: int, seed: int,
        scores: Scores | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source, self.target, self.rates, self.warmup, self.seed = source, target, rates, warmup, seed
        family = family_of(str(student.config.get_text_config().model_type))
        gates = gates_of(source, target)
        assert gates, "nothing is cut"
        self.gates = Gates(gates, {gate.axis: _start(gate, scores, source) for gate in gates})
        self.exact = (self.gates,)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._wiring: Wiring = wire(student, family, source, [gate.axis for gate in gates])
        self._masks: dict[str, Tensor] | None = None
        self._values: dict[str, Tensor] = {}
        install(student, self._wiring, source.sizes, source.get("expert_active", 1), lambda: self._masks)

    def param_groups(self) -> Sequence[ParamGroup]:
        of_masks, of_multipliers = self.rates
        return [
            ParamGroup(list(self.gates.log_alpha.values()), of_masks, clip=1.0),
            ParamGroup(list(self.gates.multipliers.values()), of_multipliers, maximize=True, clip=1.0),
        ]

    def before_forward(self) -> None:
        done = int(self.updates)
        progress = min(1.0, done / self.warmup) if self.warmup else 1.0
        masks, self._values = self.gates(self._draws(done) if self.training else None, progress)
        self._masks = by_axis(masks, self.source)

    def _draws(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % (1 << 63))
        device = self.updates.device
        return {
            gate.axis: (torch.rand(gate.sizes, generator=generator) * (1 - 2 * EPSILON) + EPSILON).to(device)
            for gate in self.gates.gates
        }

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        share = context.weights.sum()  # of the global batch
        gaps = {name: value * share for name, value in self._values.items() if name != "penalty"}
        return self._values["penalty"] * share, gaps

    @torch.no_grad()
    def after_update(self, values: Mapping[str, Tensor | float]) -> None:
        self.updates += 1
        for log_alpha in self.gates.log_alpha.values():
            log_alpha.clamp_(-LIMIT, LIMIT)

    @torch.no_grad()
    def absorber(self) -> Callable[[str, Tensor], Tensor]:
        whole = self._whole()
        masks = by_axis({g.axis: settled(whole[g.axis], g.keep) for g in self.gates.gates}, self.source)
        scaled = {f"{part.module}.{part.name}": part for part in self._wiring.scaled}

        def absorb(name: str, weight: Tensor) -> Tensor:
            return scaled[name].apply(weight, masks, self.source.sizes) if name in scaled else weight

        return absorb

    def plan(self) -> Plan:
        """What stays: the largest log-alphas of each row (a collective)."""
        values = {axis: value.cpu().numpy() for axis, value in self._whole().items()}
        return plan_of(self.gates.gates, self.source, self.target, values)

    @torch.no_grad()
    def require_settled(self, limit: float) -> None:
        """Raise MinitronError where the expected shape is further than `limit` from the target (a collective)."""
        found = self.gates(None, 1.0)[1]
        gaps = {g.axis: float(found[f"gap_{g.axis}"]) for g in self.gates.gates}
        wide = [f"--{FLAG_OF_AXIS[axis]} {gap:+.3f}" for axis, gap in gaps.items() if not abs(gap) <= limit]
        if wide:
            worst = max(abs(gap) for gap in gaps.values())
            raise MinitronError(
                f"the masks have not settled at the target after {int(self.updates)} updates: the share that is "
                f"masked is off by {', '.join(wide)} (at most {limit:g})",
                "start again with more --steps, a shorter --mask-warmup or a higher --multiplier-lr; the same line "
                f"with --max-gap {worst * 1.1:.2g} cuts all the same",
            )

    def _whole(self) -> dict[str, Tensor]:
        return {
            axis: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
            for axis, value in self.gates.log_alpha.items()
        }


def _start(gate: Gate, scores: Scores | None, source: Shape) -> Tensor:
    """Where log-alphas start: all at the limit, or by rank below it."""
    below = np.zeros(prod(gate.sizes)) if scores is None else SPREAD * ranks(gate, scores, source)
    return LIMIT - torch.from_numpy(below.reshape(gate.sizes)).float()
