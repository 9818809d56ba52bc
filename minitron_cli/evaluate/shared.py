"""One model of the harness on several processes, each of which has it whole and answers its share of the requests.

The first process evaluates as if it were alone, so that metrics, their order and their errors are those of one process.
What it asks of the model goes to all; the answers come back in the order of the requests. Where a process fails, the
first one raises the error, with the process's rank and its traceback.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from minitron_cli.errors import MinitronError, first_line
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
    """Broadcast a message of the first process to all; each gets it."""
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
    failure: MinitronError | str | None = None  # a bug as its traceback
    try:
        found = method(asked) if asked else []
    except MinitronError as error:
        failure = error
    except torch.OutOfMemoryError as error:
        failure = MinitronError(f"out of memory: {first_line(error)}", "give fewer tasks, or grade the exports")
    except Exception:  # noqa: BLE001 - the first process raises it, whatever it is
        failure = traceback.format_exc()
    parts: list[Any] | None = [None] * world.size if world.first else None
    dist.gather_object((found, failure), parts, dst=0, group=world.group)
    for rank, (_, failure) in enumerate(parts or ()):
        where = f"process {rank} of {world.size} failed on {name} requests"
        if isinstance(failure, MinitronError):
            raise MinitronError(f"{where}: {failure.message}", failure.hint)
        if failure is not None:
            raise RuntimeError(f"{where}:\n{failure}")
    return [one for part, _ in parts or () for one in part]
