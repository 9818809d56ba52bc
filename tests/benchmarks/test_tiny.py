"""Every benchmark runs to its end: at its smallest size, in a process of its own, with the threads it would have."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.gpu import CELLS

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


@pytest.mark.slow
def test_all_that_a_gpu_is_asked_for_runs_on_the_cpu_and_goes_on_where_it_was(tmp_path):
    file = tmp_path / "gpu.json"
    line = [sys.executable, "-m", "tests.benchmarks.gpu", "--tiny", "--output", str(file)]
    for part in (["--part", "2"], []):
        done = subprocess.run([*line, *part], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(file.read_text())["cells"]
    assert sorted(found) == sorted(cell.name for cell in CELLS)
    assert all(cell["lines"] for cell in found.values())
    # The cells of the part that was measured before were not measured again.
    second = {cell.name for cell in CELLS if cell.part == 2}
    assert not [name for name in second if f"{name} ..." in done.stderr]


def test_without_a_gpu_the_benchmark_of_one_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 1
    assert capsys.readouterr().err.startswith("error: torch sees no GPU")
