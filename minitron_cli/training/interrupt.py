"""Stopping on request: a signal sets a flag that the loop reads once a step, so that all ranks stop at the same."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopFlag:
    """`signal` is the number of the first signal received, or 0."""

    signal: int = 0

    @property
    def exit_code(self) -> int:
        """The shell's convention for a process ended by that signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Turn SIGINT and SIGTERM into a flag for the time of the block; a second SIGINT stops at once."""
    flag = StopFlag()

    def receive(number: int, frame: FrameType | None) -> None:
        if flag.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = flag.signal or number

    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, receive) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
