"""Make a model compute with masks: weights are replaced while their module's forward runs, no class is touched.

Hooks run inside of the module's own forward call, after sharded weights were gathered, and again where activation
checkpointing runs a block twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minitron_cli.training.masks.wiring import Norm, Scaled, Wiring

# The masks by axis (see `wiring.by_axis`), float32; None leaves the model as it is.
Current = Callable[[], Mapping[str, Tensor] | None]


def install(model: nn.Module, wiring: Wiring, sizes: Mapping[str, int], active: int, current: Current) -> None:
    """Hook every module that masks act on. A router keeps at least `active` experts."""
    norms = {norm.gain.module: norm for norm in wiring.norms}
    roles: dict[str, dict[str, Scaled]] = {name: {norm.gain.name: norm.gain} for name, norm in norms.items()}
    for scaled in wiring.scaled:
        roles.setdefault(scaled.module, {})[scaled.name] = scaled
    for name, parts in roles.items():
        module = model.get_submodule(name)
        masked = _Masked(parts, norms.get(name), sizes, current)
        module.register_forward_pre_hook(masked.before)
        module.register_forward_hook(masked.after, always_call=True)
    for name, layer in wiring.routers.items():
        router = _Router(layer, active, current)
        module = model.get_submodule(name)
        module.register_forward_pre_hook(router.before)
        module.register_forward_hook(router.after, always_call=True)


@dataclass(slots=True)
class _Masked:
    """The hooks of one module: its parameters multiplied, and a norm's mean taken over live coordinates.

    A norm over n coordinates, of which m are live, sees the live ones times c = sqrt(n / m) and zeros: the mean of
    squares over all is then that over the live ones, and the gain takes c out again.
    """

    parts: Mapping[str, Scaled]
    norm: Norm | None
    sizes: Mapping[str, int]
    current: Current
    _own: dict[str, Any] = field(default_factory=dict)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        masks = self.current()
        if masks is None:
            return None
        more: dict[str, Tensor] = {}
        if self.norm is not None:
            args, more[self.norm.gain.name] = self._live(self.norm, masks, args)
        for name, part in self.parts.items():
            weight = module._parameters[name]
            assert weight is not None
            self._own[name] = weight
            module._parameters[name] = part.apply(weight, masks, self.sizes, more.get(name, 1.0))  # type: ignore[assignment]
        return args

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(self._own)
        self._own.clear()

    def _live(self, norm: Norm, masks: Mapping[str, Tensor], args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor]:
        """The norm's arguments with dropped coordinates silent, and what its gain is to be multiplied by."""
        x: Tensor = args[0]
        live = (norm.live.of(masks, self.sizes, 1) != 0).float()
        count = live.sum().clamp_min(1)
        # Rounded as x is, so that the gain takes out just what was put in.
        factor = (len(live) / count).sqrt().to(x.dtype)
        if norm.centred:
            x = x - ((x * live).sum(-1, keepdim=True) / count).to(x.dtype)
        return (x * (live * factor).to(x.dtype), *args[1:]), 1 / factor.float()


@dataclass(slots=True)
class _Router:
    """The hooks of one router: dropped experts get a logit of minus infinity, where their weight is multiplied."""

    layer: int
    active: int
    current: Current
    _mode: "_Excluding | None" = None

    def before(self, module: nn.Module, args: Any) -> None:
        masks = self.current()
        if masks is not None:
            values = masks["expert"][self.layer].detach()
            dead = values == 0
            # A draw may leave fewer than a token is routed to: then the others are routed to, and read as zeros.
            dead[values.argsort(descending=True, stable=True)[: self.active]] = False
            self._mode = _Excluding(dead)
            self._mode.__enter__()

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None


class _Excluding(TorchFunctionMode):
    """Fills what linear products give for dead outputs (expert,) bool with minus infinity."""

    def __init__(self, dead: Tensor) -> None:
        super().__init__()
        self.dead = dead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.masked_fill(self.dead, -torch.inf) if func is nn.functional.linear else result
