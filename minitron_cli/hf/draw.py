"""New weights for a model that was built empty (empty.py): those of transformers' own initialisation, to the bit.

transformers visits every module, and its rule for the module's class draws the module's weights, and sometimes some of
a module inside it (a router's, the output of a mixer). What no rule draws has the value that its constructor gave it
(the numbers of an activation). A first model without memory shows which rule writes what; a second one is built and
initialised in the same order with a seed, and what a rule writes is real while it runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minitron_cli.errors import MinitronError
from minitron_cli.hf.empty import empty_model
from minitron_cli.hf.fill import put

_EMPTY = torch.ops.aten.empty.memory_format


@torch.no_grad()
def draw(model: Any, seed: int) -> None:
    """New weights, the bits that transformers' `from_config` draws after `torch.manual_seed(seed)`: on any number of
    ranks, each of which draws every tensor, one module at a time, and keeps its part.

    Torch's global generator is left where `from_config` leaves it.
    """
    rules, wanted = _Rules(model.config), dict(model.named_parameters())
    position, registered, drawing = count(), count(), _Drawing(type(model).__name__)

    def keep(module: nn.Module, name: str, value: nn.Parameter) -> None:
        full = rules.by_constructor.get(next(registered))
        if full is not None and full in wanted and not value.isnan().any():
            put(wanted[full], value)
            rules.done.add(full)

    def initialise(original: Callable[..., None], owner: Any, module: nn.Module) -> None:
        visit = next(position)
        drawing.module = rules.names[visit]
        places = {full: (module.get_submodule(inside), name) for full, inside, name in rules.written[visit]}
        before = {full: place._parameters[name] for full, (place, name) in places.items()}
        for full, (place, name) in places.items():
            old = before[full]
            assert old is not None
            place._parameters[name] = nn.Parameter(torch.full(old.shape, torch.nan), old.requires_grad)
        original(owner, module)
        drawing.module = ""
        for full, (place, name) in places.items():
            made, place._parameters[name] = place._parameters[name], before[full]
            assert made is not None
            # The other names of a tied weight are not wanted: it is drawn for them too, and let go.
            if full in wanted and not made.isnan().any():
                put(wanted[full], made)
                rules.done.add(full)

    torch.manual_seed(seed)
    with _initialising(initialise), drawing:
        empty_model(model.config, torch.float32, watch=keep)
    if missing := [name for name in wanted if name not in rules.done]:
        raise MinitronError(
            f"{type(model).__name__} has no rule for new weights of {missing[0]}", "train a model that has weights"
        )


class _Rules:
    """What initialisation writes in a model of a config, found by doing it without memory.

    `names` are the modules in the order of the visits; `written` what each visit writes: the parameter's full name, the
    module that has it (its name inside the visited one), its name there. `by_constructor` holds what no visit writes,
    by how many parameters were registered before it. `done` is for what has been drawn.
    """

    def __init__(self, config: Any) -> None:
        order: list[tuple[nn.Module, list[tuple[str, str]]]] = []
        registered: list[tuple[nn.Module, str]] = []
        writing, changed = _Writing(), dict[int, Tensor]()

        def visit(original: Callable[..., None], owner: Any, module: nn.Module) -> None:
            changed.update(writing.seen)  # by constructors, after they registered it: its value is lost
            writing.seen = {}
            original(owner, module)
            inside = ((path, sub, name) for path, sub in module.named_modules() for name in sub._parameters)
            order.append((module, [(path, n) for path, sub, n in inside if id(sub._parameters[n]) in writing.seen]))
            writing.seen = {}

        with _initialising(visit), writing:
            model = empty_model(config, torch.float32, watch=lambda *one: registered.append(one[:2]))
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[module] for module, _ in order]
        self.written = [
            [(_joined(names[module], path, name), path, name) for path, name in found] for module, found in order
        ]
        every = {full for found in self.written for full, _, _ in found}
        self.by_constructor = {
            at: full
            for at, (module, name) in enumerate(registered)
            if module in names
            and (full := _joined(names[module], name)) not in every
            and id(module._parameters.get(name)) not in changed
        }
        self.done: set[str] = set()


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


@contextmanager
def _initialising(visit: Callable[[Callable[..., None], Any, nn.Module], None]) -> Iterator[None]:
    """Within, transformers initialises a module by `visit(original, model, module)`, once for each."""
    from transformers import PreTrainedModel

    original = PreTrainedModel._initialize_weights

    def initialise(owner: Any, module: nn.Module, is_custom_code: bool = False) -> None:
        if not getattr(module, "_is_hf_initialized", False):
            visit(original, owner, module)

    with patch.object(PreTrainedModel, "_initialize_weights", initialise):
        yield


class _Writing(TorchDispatchMode):
    """Remembers the meta tensors that are written in place, by id, and so keeps the id from being another's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and isinstance(args[0], Tensor) and args[0].is_meta:
            self.seen[id(args[0])] = args[0]
        return func(*args, **(kwargs or {}))


class _Drawing(TorchDispatchMode):
    """Draws for meta tensors too, and lets the numbers go: constructors draw what initialisation then replaces.

    What a constructor leaves without a value is NaN. A module whose rule draws what was not foreseen is refused:
    `module` is the one that is being initialised.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model, self.module = model, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = torch.Tag.nondeterministic_seeded in func.tags and func._schema.name.endswith("_")
        if drawn and args[0].is_meta and self.module:
            raise MinitronError(
                f"{self.model} has no rule for new weights of each module: {self.module} draws others than before",
                "train a model that has weights",
            )
        if drawn and args[0].is_meta:
            func(torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:], **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        if func is _EMPTY and made.is_floating_point() and not made.is_meta:
            made.fill_(torch.nan)
        return made
