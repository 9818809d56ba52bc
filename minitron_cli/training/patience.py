"""Trying again what may pass, after waits that double."""

import threading
from collections.abc import Iterator
from typing import NamedTuple

FIRST_WAIT = 0.5  # seconds before the second try, doubled before each further one


class Patience(NamedTuple):
    """How often something is tried while its failures may pass, and after how many seconds of silence it has failed."""

    tries: int
    seconds: float


AT_WORK = Patience(7, 600.0)  # with the waits between the tries, half a minute where the server is gone
AT_START = Patience(3, 60.0)


class Tries:
    """The numbers of the tries, each but the first after its wait; they end early once `stopped` is set.

    `least` are the seconds that the other side asks to be left alone before the next one.
    """

    def __init__(self, count: int, stopped: threading.Event | None = None) -> None:
        self._count, self._stopped = count, stopped or threading.Event()
        self.least = 0.0

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            if number and self._stopped.wait(max(self.least, FIRST_WAIT * 2 ** (number - 1))):
                return
            self.least = 0.0
            yield number
