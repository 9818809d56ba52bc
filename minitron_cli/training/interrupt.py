"""Stopping on request: a signal sets a flag that the loop reads once a step, so that all ranks stop at the same."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# A terminal and a launcher both pass on one key press: what comes this soon after the first is its echo.
_ECHO_SECONDS = 1.0


@dataclass(slots=True)
class StopFlag:
    """`signal` is the number of the first signal received, or 0; `received` when, by the monotonic clock."""

    signal: int = 0
    received: float = 0.0

    @property
    def exit_code(self) -> int:
        """The shell's convention for a process ended by that signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


@contextmanager
def stop_on_signal(wanted: bool = True) -> Iterator[StopFlag]:
    """Turn SIGINT and SIGTERM into a flag for the time of the block; a second SIGINT stops at once.

    Only the main thread can install handlers; in another one, and where they are not `wanted`, the flag stays down.
    """
    flag = StopFlag()

    def receive(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not flag.signal:
            flag.signal, flag.received = number, now
        elif number == signal.SIGINT and now - flag.received > _ECHO_SECONDS:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    watched = (signal.SIGINT, signal.SIGTERM) if wanted and main else ()
    before = {number: signal.signal(number, receive) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
