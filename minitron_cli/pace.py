"""How often long work says how far it is, and when it will be done."""

import time

SECONDS_PER_LINE = 5.0


class Pace:
    """The clock of some work, of which `done` was done before."""

    def __init__(self, done: float = 0.0) -> None:
        self._before = done
        self._began = self._told = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line; after True not for a few seconds."""
        now = time.monotonic()
        if now - self._told < SECONDS_PER_LINE:
            return False
        self._told = now
        return True

    def rate(self, done: float) -> float:
        """What is done a second."""
        return (done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def left(self, done: float, total: float) -> str:
        """How long the rest will take, in words; empty while nothing is done."""
        rate = self.rate(done)
        return f"{duration_text((total - done) / rate)} left" if rate > 0 else ""


def duration_text(seconds: float) -> str:
    """Seconds as 42s, 3m20s or 5h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
