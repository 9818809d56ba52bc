"""A search's directory is reused only by a search with the same inputs and settings."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file, check_apart
from minitron_cli.checkpoint.disk import check_place
from minitron_cli.checkpoint.provenance import file_digest, read_manifest
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.data.source import local_paths
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.bench import check_context
from minitron_cli.hf.context import context_length
from minitron_cli.prune.vocabulary import Vocabulary
from minitron_cli.search.request import SearchRequest
from minitron_cli.spec.scores import Scores

FILE = "identity.json"


def check_request(source: Checkpoint, request: SearchRequest) -> Scores:
    """Refuse an output that overlaps what the search reads, and a prompt longer than the context; the scores."""
    if request.speed is not None:
        # Every candidate has the source's context: what is too long shows before anything is measured.
        check_context([(str(source.path), context_length(source.config))], request.speed.cells, "--bench-grid")
    check_place(request.output)
    check_apart(request.output, [source.path, request.scores, *local_paths((*request.data, *request.eval_data))])
    return read_scores(request.scores)[0]


def claim(request: SearchRequest, seq_len: int, vocabulary: Vocabulary | None = None) -> None:
    """Record what the directory's candidates and losses depend on; another search's directory is refused.

    Scores carry the digest of their model, and cutting checks it, so the digest of the scores covers both. Which tokens
    stay follows from the text that a `vocabulary` was counted on.
    """
    now = {"scores": file_digest(request.scores), "seq_len": seq_len, "separator": request.separator}
    if vocabulary is not None:
        now |= {"counted": hashlib.sha256(vocabulary.order.tobytes()).hexdigest()}
    file = request.output / FILE
    if file.is_file():
        _refuse(request.output, json.loads(file.read_text()), now)
        return
    if request.output.is_dir() and any(request.output.iterdir()):
        raise MinitronError(f"{request.output} exists and holds no search", "choose another output with -o")
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n")


def finished(output: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a finished training with these settings is at `output`; one with others is refused."""
    manifest = read_manifest(output)
    if manifest is None:
        return False
    now = json.loads(json.dumps(dict(settings)))
    _refuse(output, {key: manifest["options"].get(key) for key in now}, now)
    return True


def _refuse(place: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{key} was {there.get(key)}, is {now[key]}" for key in now if there.get(key) != now[key]]
    if changed:
        raise MinitronError(
            f"{place} was created with different settings: {'; '.join(changed)}",
            "choose another output with -o, or remove it",
        )
