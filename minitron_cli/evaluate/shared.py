"""One model of the harness on several processes, each of which has it whole and answers its share of the requests.

The first process evaluates as if it were alone, so that metrics, their order and their errors are those of one process.
What it asks of the model goes to all; the answers come back in the order of the requests.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist

from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.harness import quiet
from minitron_cli.hf.process_group import World

_METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@contextmanager
def sharing(lm: Any, world: World) -> Iterator[None]:
    """While the block runs, the first process' model shares its requests with the others, which `answer`."""
    own = {name: getattr(lm, name) for name in _METHODS}

    def ask(name: str, requests: Sequence[Any]) -> list[Any]:
        arguments = [request.args for request in requests]
        _tell(world, (name, arguments))
        return _answers(own[name], name, arguments, world)

    if world.size > 1:
        for name in _METHODS:
            setattr(lm, name, partial(ask, name))
    try:
        yield
    finally:
        if world.size > 1:
            for name in _METHODS:
                delattr(lm, name)
            _tell(world, None)


def answer(lm: Any, world: World) -> None:
    """Answer this process' share of what the first one asks, until it has no more."""
    with quiet():
        while (asked := _tell(world, None)) is not None:
            name, arguments = asked
            _answers(getattr(lm, name), name, arguments, world)


def _tell(world: World, message: Any) -> Any:
    """What the first process says to all."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=world.group)
    return box[0]


def _answers(method: Any, name: str, arguments: Sequence[tuple[Any, ...]], world: World) -> list[Any]:
    """All answers, on the first process, in the order of the requests; each process makes a contiguous part.

    Choices of one question follow one another, and are cheaper together.
    """
    from lm_eval.api.instance import Instance

    begin, end = (rank * len(arguments) // world.size for rank in (world.rank, world.rank + 1))
    asked = [Instance(name, {}, args, place) for place, args in enumerate(arguments[begin:end])]
    found: list[Any] = []
    problem = None
    try:
        found = method(asked) if asked else []
    except Exception as error:  # noqa: BLE001 - the first process has to hear of it, whatever it is
        problem = f"{type(error).__name__}: {error}"
    parts: list[Any] | None = [None] * world.size if world.first else None
    dist.gather_object((found, problem), parts, dst=0, group=world.group)
    wrong = [f"process {rank}: {why}" for rank, (_, why) in enumerate(parts or ()) if why is not None]
    if wrong:
        raise MinitronError(f"{name} requests failed: {'; '.join(wrong)}", "give fewer tasks, or grade the exports")
    return [one for part, _ in parts or () for one in part]
