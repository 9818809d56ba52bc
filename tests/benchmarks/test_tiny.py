"""Every benchmark runs to its end: at its smallest size, in a process of its own, with the threads it would have."""

import os
import subprocess
import sys

import pytest

from tests.benchmarks.__main__ import BENCHMARKS

SECONDS = 900


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_to_its_end(name, tmp_path):
    """A fork after torch has started its threads would hang here: the timeout is the test."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in threads}
    line = [sys.executable, "-m", f"tests.benchmarks.{name}", "--tiny"]
    done = subprocess.run(
        line, env={**environment, "MINITRON_CACHE": str(tmp_path)}, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
