"""The vocabulary as an axis of a prune: counted on a corpus, chosen, and carried through the files of the tokenizer."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.carried import carry
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.encode import Progress
from minitron_cli.data.tokenizer import has_tokenizer, tokenizer_json
from minitron_cli.data.vocabulary.choose import kept_of_size, parse_coverage, removal_order, size_for_coverage
from minitron_cli.data.vocabulary.counts import count_tokens, respelling
from minitron_cli.data.vocabulary.pieces import pieces_of
from minitron_cli.data.vocabulary.surgery import backend_of, cut_files
from minitron_cli.data.vocabulary.wanted import listed_ids, named_ids
from minitron_cli.errors import MinitronError
from minitron_cli.prune.request import PruneRequest
from minitron_cli.spec.plan import Plan

Reporting = Callable[[], AbstractContextManager[Progress]]


def _silent() -> AbstractContextManager[Progress]:
    """Reports nothing."""
    return nullcontext(lambda done, total, tokens: None)


@dataclass(frozen=True, slots=True)
class Counting:
    """How a corpus is counted: what shows its progress, and the number of processes."""

    reporting: Reporting = _silent
    workers: int = 1


QUIET = Counting()


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """A model's tokens as the corpus uses them: counts (rows,) int64 by domain, and the order in which ids go."""

    model: Path
    raw: Mapping[str, Any]
    counts: Mapping[str, np.ndarray]
    order: np.ndarray

    @property
    def rows(self) -> int:
        """Embeddings of the model."""
        return len(self.total)

    @property
    def total(self) -> np.ndarray:
        return np.sum(list(self.counts.values()), axis=0)

    def kept(self, size: int) -> np.ndarray:
        """The ids that stay when `size` do, ascending."""
        return kept_of_size(self.order, self.rows, size)

    def share_kept(self, size: int) -> float:
        """The share of the corpus' tokens that stay when `size` do."""
        return float(self.total[self.kept(size)].sum() / self.total.sum())

    def lengthening(self, size: int) -> float:
        """The relative increase of the corpus' tokens when `size` stay: 0.05 is 5% more."""
        found = self.report(size).values()
        return sum(one["lengthening"] * one["tokens"] for one in found) / sum(one["tokens"] for one in found)

    def report(self, size: int) -> dict[str, dict[str, float]]:
        """How each domain's text is tokenised when `size` tokens stay (see `Respelling`)."""
        found = respelling(self.counts, self.raw, self.model, self.kept(size), self.rows)
        return {domain: asdict(one) for domain, one in found.items()}


def read_vocabulary(request: PruneRequest, source: Checkpoint, counting: Counting = QUIET) -> Vocabulary:
    """Count the corpus of a request and order the tokens of its source."""
    if not has_tokenizer(source.path):
        raise MinitronError(f"{source.path} has no tokenizer", "copy tokenizer.json and tokenizer_config.json there")
    raw = tokenizer_json(source.path)
    backend = backend_of(raw)
    listed = listed_ids(request.keep_tokens, backend) if request.keep_tokens else set()
    rows = source.shape["vocab"]
    pieces = pieces_of(raw, rows, named_ids(source.path, source.whole, backend) | listed)
    with counting.reporting() as progress:
        counts = count_tokens(request.data, source.path, rows, progress, counting.workers)
    return Vocabulary(source.path, raw, counts, removal_order(np.sum(list(counts.values()), axis=0), pieces))


def covering_size(vocabulary: Vocabulary, coverage: str, multiple: int) -> int:
    """`--vocab-coverage`: the least multiple that keeps this share of the corpus' tokens."""
    size = size_for_coverage(vocabulary.order, vocabulary.total, parse_coverage(coverage))
    return min(vocabulary.rows, -(-size // multiple) * multiple)


def carry_files(source: Checkpoint, directory: Path, plan: Plan) -> None:
    """What a pruned model takes along, with its token ids renumbered where the vocabulary was cut."""
    carry(source.path, directory, text_only=source.is_text_alone)
    if "vocab" in plan.kept:
        raw = tokenizer_json(source.path) if has_tokenizer(source.path) else None
        cut_files(source.path, directory, raw, plan.kept["vocab"], plan.source["vocab"])
