"""Several processes answer what one asks, in its order."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_requests_are_shared_and_come_back_in_order(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    line = [*torchrun, "-m", "tests.evaluate.shared_worker", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    ranks = {"loglikelihood": [0, 0, 1, 1, 1, 2, 2, 2], "generate_until": [1, 2], "loglikelihood_rolling": []}
    for name, answered in ranks.items():
        assert found[name] == [[rank, f"{name} {i}", {"until": [i]}] for i, rank in enumerate(answered)]
    kind, message, _ = found["bad"]
    assert kind == "RuntimeError"
    assert message.startswith("process 2 of 3 failed on loglikelihood requests:\nTraceback (most recent call last):")
    assert 'raise ValueError("a bad request")' in message, "the line of the other process that failed"
    refused = "process 2 of 3 failed on loglikelihood requests: a refused request"
    assert found["refused"] == ["MinitronError", refused, "ask for another"]
    assert found["alone"] == [[0, "a"]], "after the block the model is its own again"
