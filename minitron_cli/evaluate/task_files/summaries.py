"""What the summary task file needs: the fixed fifth of the documents, and ROUGE-L."""

import random
from typing import Any

_SEED = 1234


def fifth(dataset: Any) -> Any:
    """Every fifth part of the split, drawn once with a fixed seed, in the order of the split."""
    count = len(dataset)
    return dataset.select(sorted(random.Random(_SEED).sample(range(count), count // 5)))


def rougeL(references: list[str], predictions: list[str]) -> float:
    """ROUGE-L F1 (with stemming) of one summary, 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rougeL"], use_stemmer=True).score(references[0], predictions[0])
    return 100.0 * float(found["rougeL"].fmeasure)
