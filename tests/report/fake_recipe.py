"""The family that the tests report on, and what it is said to have come to.

large -> middle-pruned -> middle -> small-pruned -> small, and shallow-pruned with fewer layers.
"""

from minitron_cli.spec.recipe import Recipe, Step
from minitron_cli.spec.shape import Shape

LARGE = Shape({"vocab": 211, "hidden": 48, "layer": 6, "head": 8, "kv": 4, "head_dim": 6, "ffn": 120})
TARGETS = {
    "middle-pruned": {"hidden": 36, "ffn": 72},
    "small-pruned": {"hidden": 24, "ffn": 40, "head": 4},
    "shallow-pruned": {"layer": 4},
}
LOSS = {
    "large": 1.312,
    "middle-pruned": 2.871,
    "middle": 1.377,
    "small-pruned": 3.402,
    "small": 1.521,
    "shallow-pruned": 2.204,
}
ACCURACY = {
    "large": 0.842,
    "middle-pruned": 0.421,
    "middle": 0.825,
    "small-pruned": 0.352,
    "small": 0.761,
    "shallow-pruned": 0.55,
}
SPEED = {
    "large": 10_400.0,
    "middle-pruned": 14_900.0,
    "middle": 15_100.0,
    "small-pruned": 23_700.0,
    "small": 23_500.0,
    "shallow-pruned": 15_300.0,
}
SKILLS = ("toy_facts", "toy_story", "toy_arithmetic", "toy_brackets")
SAMPLES = 400
EVAL_DATA = ["runs/fake/world/corpus/valid.jsonl"]

RECIPE = Recipe(
    "fake",
    "A family for tests: large → middle → small, & one of fewer layers <sic>",
    {},
    (
        Step("world", "toy", {}, {"seed": 0}),
        Step(
            "large",
            "train",
            {"model": ("world/teacher-init",), "data": ("world/corpus/train.jsonl",)},
            {"from-scratch": True, "steps": 120},
        ),
        Step(
            "scores-large", "importance", {"model": ("large",), "data": ("world/corpus/train.jsonl",)}, {"samples": 256}
        ),
        Step(
            "middle-pruned",
            "prune",
            {"model": ("large",), "scores": ("scores-large",)},
            {"target": "width", "hidden": 36, "ffn": 72},
        ),
        Step(
            "middle",
            "distill",
            {"student": ("middle-pruned",), "teacher": ("large",), "data": ("world/corpus/train.jsonl",)},
            {"steps": 60},
        ),
        Step(
            "scores-middle",
            "importance",
            {"model": ("middle",), "data": ("world/corpus/train.jsonl",)},
            {"samples": 256},
        ),
        Step(
            "small-pruned",
            "prune",
            {"model": ("middle",), "scores": ("scores-middle",)},
            {"target": "width", "hidden": 24, "ffn": 40, "heads": 4},
        ),
        Step(
            "small",
            "distill",
            {"student": ("small-pruned",), "teacher": ("large",), "data": ("world/corpus/train.jsonl",)},
            {"steps": 80},
        ),
        Step(
            "shallow-pruned",
            "prune",
            {"model": ("large",), "scores": ("scores-large",)},
            {"target": "depth", "layers": 4},
        ),
        Step("speed", "bench", {"models": ("large", "middle", "small")}, {"grid": "32x16,64x8"}),
        Step("figures", "eval", {"models": tuple(LOSS), "data": ("world/corpus/valid.jsonl",)}, {"tasks": "toy"}),
    ),
)
STEPS = {"large": 120, "middle": 60, "small": 80}
TOKENS_PER_STEP = 2048


def shape_of(name: str) -> Shape:
    """The shape of a model of the family."""
    parent = {
        "middle-pruned": "large",
        "middle": "middle-pruned",
        "small-pruned": "middle",
        "small": "small-pruned",
        "shallow-pruned": "large",
    }.get(name)
    return LARGE if parent is None else shape_of(parent).with_(**TARGETS.get(name, {}))
