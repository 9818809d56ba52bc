"""Check a run directory: the output of every finished step against the digests taken when it finished."""

from pathlib import Path

from minitron_cli.chain.fingerprint import file_digests
from minitron_cli.chain.state import load
from minitron_cli.checkpoint.verify import Findings
from minitron_cli.spec.recipe import VERBS


def verify_run(directory: Path) -> Findings:
    """Compare the files of every finished step with its record."""
    found = Findings(str(directory), "minitron run")
    for name, record in load(directory).items():
        if not record.finished:
            found.notes.append(f"step {name} is not finished")
            continue
        output = directory / (name + VERBS[record.command[0]].suffix)
        now = file_digests(output) if output.exists() else {}
        found.checks.append(f"step {name}: sha256 of {len(record.files)} files")
        found.problems += [
            f"{name}/{file}".removesuffix("/.") + " is not what the step made" for file in record.changed(now)
        ]
    return found
