"""Named sets of evaluation rows, with the shots and metrics of the Minitron papers."""

from __future__ import annotations

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.evaluate.options import Request

# The rows of the papers' tables (arXiv 2407.14679, section 4; 2408.11796, table 1). The last three are our own task
# files: the harness has no English XLSum, three shots for MBPP and a single greedy sample for HumanEval.
MINITRON = (
    Request("winogrande", 5, ("acc",)),
    Request("arc_challenge", 25, ("acc_norm",)),
    Request("mmlu", 5, ("acc",)),
    Request("hellaswag", 10, ("acc_norm",)),
    Request("gsm8k", 5, ("exact_match,strict-match",)),
    Request("truthfulqa_mc2", 0, ("acc",)),
    Request("xlsum_english_fifth", 3, ("rougeL",)),
    Request("mbpp_zero_shot", 0, ("pass_at_1",)),
    Request("humaneval_20", 0, ("mean_pass_at_1",)),
)
# Minutes instead of hours: multiple choice only, the first documents of each task. Not comparable with published ones.
QUICK = (
    Request("winogrande", 5, ("acc",), limit=400),
    Request("arc_challenge", 25, ("acc_norm",), limit=200),
    Request("hellaswag", 10, ("acc_norm",), limit=200),
    Request("mmlu", 5, ("acc",), limit=5),
    Request("truthfulqa_mc2", 0, ("acc",), limit=200),
)
SUITES = {"minitron": MINITRON, "quick": QUICK}


def suite(name: str) -> tuple[Request, ...]:
    """The rows of the suite `name`."""
    if name not in SUITES:
        raise MinitronError(f"no suite {name!r}", near_matches(name, tuple(SUITES)))
    return SUITES[name]
