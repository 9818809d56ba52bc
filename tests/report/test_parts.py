"""The arithmetic and the drawing of parts, away from a whole run."""

from pathlib import Path

import numpy as np
import pytest

from minitron_cli.report import text
from minitron_cli.report.draw.heat import columns, ranked
from minitron_cli.report.draw.style import OTHER
from minitron_cli.report.draw.training import loss_curve, smooth, thin
from minitron_cli.report.page import page
from minitron_cli.report.read.kept import axes_kept
from minitron_cli.report.read.values import Curve, Model, Results, Run, ScoresFile, Step
from minitron_cli.report.sections.evaluation import task_table
from minitron_cli.report.sections.importance import expert_choice
from minitron_cli.report.table import Cell, Table
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape
from tests.report.reading import Page

MOE = Shape({"vocab": 11, "hidden": 16, "layer": 3, "head": 4, "kv": 2, "head_dim": 4, "expert": 5, "expert_active": 2,
             "expert_ffn": 24})  # fmt: skip


HOSTILE = "\"><script>alert('x')</script>"


def _run(*files: ScoresFile) -> Page:
    """The page of a run that has nothing but these scores."""
    step = Step("scores", "importance", ("importance", HOSTILE), Path(), "done", None, {}, {})
    return Page(page(Run("parts", HOSTILE, Path(), True, (step,), (), files, (), (), {}, (HOSTILE,))))


def _experts(seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    shapes = {"layer": (3,), "hidden": (16,), "head": (3, 4), "expert": (3, 5), "expert_ffn": (3, 5, 24)}
    return Scores({axis: rng.lognormal(0, 1, shape) for axis, shape in shapes.items()}, {})


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0, "0"), (999, "999"), (166_032, "166K"), (999_600, "1M"), (4_512_746_496, "4.51B"), (2e12, "2T")],
)
def test_counts(value: float | None, words: str) -> None:
    assert text.count(value) == words


def test_other_numbers() -> None:
    assert text.flops(1.2345e15) == "1.23 × 10¹⁵"
    assert [text.duration(s) for s in (None, 4.2, 42, 3725)] == ["–", "4.2 s", "42 s", "1 h 2 min"]
    assert [text.p_value(p) for p in (1e-9, 0.0123, 0.5)] == ["p < 0.0001", "p = 0.0123", "p = 0.50"]
    assert [text.size(b) for b in (None, 12, 1_234_567)] == ["–", "12 B", "1.23 MB"]


def test_hostile_names_stay_text() -> None:
    """In headings, attributes, captions, cells, pictures' labels and commands."""
    scores = Scores({"hidden": np.ones(5), "ffn": np.ones((2, 9))}, {"model": {"name": HOSTILE}, "samples": 1})
    shown = _run(ScoresFile(HOSTILE, Path("s.safetensors"), scores, {}))
    assert "script" not in shown.tags
    assert shown.text.count("<script>alert(") >= 7
    assert any(HOSTILE in value for _, name, value in shown.attributes if name == "aria-label")


def test_columns_without_content_are_left_out() -> None:
    table = Table("t", ("name", "a", "b"), [["x", "–", Cell("1", ("under",))], ["–", Cell("–"), "–"]])
    assert table.without_empty_columns().columns == ["name", "b"]


@pytest.mark.parametrize(
    ("value", "kept", "words"), [(0.5, 0.5, "50.0% kept"), (0.2, -0.1, "at or below chance"), (0.9, 1.3, "130.0% kept")]
)
def test_a_score_at_chance_has_kept_nothing(value: float, kept: float, words: str) -> None:
    row = {"task": "t", "metric": "acc", "value": value, "stderr": None, "num_samples": 9, "higher_is_better": True,
           "model": "m", "chance": 0.25, "kept": kept, "comparison": None}  # fmt: skip
    table = task_table(Results("r", Path(), {"models": [{"name": "m"}], "rows": [row]}))
    assert table is not None
    assert table.rows[0][1] == Cell(f"{value:.4f}", (words,))


def test_a_clipped_curve_is_marked() -> None:
    """From-scratch training starts far above where it ends: the scale leaves the start out and says so."""
    steps = np.arange(1.0, 201)
    start = {"ce": 1 + 8 * np.exp(-steps / 4), "step": steps, "tokens": steps, "flops": steps}
    flat = {**start, "ce": 1 + steps / 1000}
    notes = {}
    for name, logged in (("steep", start), ("flat", flat)):
        model = Model(name, "train", Path(), "done", None, (), {}, {}, None, Curve(logged, {}, None), {})
        found = loss_curve(model, OTHER, None)
        assert found is not None
        notes[name] = found.note
    assert notes["flat"] == ""
    assert text.three(start["ce"].max()) in notes["steep"]


def test_columns_divide_an_axis_evenly_and_keep_its_mean() -> None:
    rows = np.arange(2 * 352.0).reshape(2, 352)
    found = columns(rows, 240)
    assert found.shape == (2, 240)
    at = (found[0] + 0.5) / 352  # where each column's units are, against where the column is
    np.testing.assert_allclose(at, (np.arange(240) + 0.5) / 240, atol=1 / 240)
    even = columns(rows, 176)
    np.testing.assert_allclose(even.mean(1), rows.mean(1))
    assert columns(rows, 352) is rows


def test_ranked_rows_descend_around_one() -> None:
    found = ranked(np.random.default_rng(0).random((4, 100)))
    assert (np.diff(found, axis=1) <= 0).all()
    np.testing.assert_allclose(found.mean(1), 1)
    assert (ranked(np.zeros((1, 5))) == 0).all(), "a layer without the axis has scores of zero"


def test_smoothing_keeps_constants_and_does_not_lag() -> None:
    np.testing.assert_allclose(smooth(np.full(300, 3.0)), 3)
    line = np.linspace(5, 1, 300)
    np.testing.assert_allclose(smooth(line)[20:-20], line[20:-20], atol=1e-9)
    assert smooth(np.array([2.0])).tolist() == [2.0]


def test_thinning_leaves_out_what_is_no_number_and_keeps_the_mean() -> None:
    at, values = thin(np.arange(1200.0), np.where(np.arange(1200) % 10 == 0, np.nan, 1.5))
    assert len(at) == len(values) <= 600
    np.testing.assert_allclose(values, 1.5)


def test_a_mixture_of_experts_is_shown_per_layer() -> None:
    scores = _experts()
    shown = _run(ScoresFile("moe", Path("moe.safetensors"), scores, {}))
    assert shown.tags.count("svg") == 9, "in two widths but for the heads, which are few"
    rows = shown.table("Importance of expert neurons in moe")
    assert list(rows) == ["layer 0", "layer 1", "layer 2"]
    ranks = np.sort(scores.values["expert_ffn"], axis=-1)[..., ::-1].mean(1)
    assert rows["layer 1"][3] == f"{ranks[1].max():.4g}"


def test_how_far_domains_choose_the_same_experts() -> None:
    """Of five experts two are the better half. The layer in the middle has none, and does not count."""

    def of(name: str, *better: tuple[int, int]) -> ScoresFile:
        values = np.zeros((3, 5))
        for layer, (first, second) in zip((0, 2), better):
            values[layer] = 1
            values[layer, [first, second]] = 3, 2
        return ScoresFile(name, Path(name), Scores({"expert": values}, {}), {})

    files = of("code", (0, 1), (2, 3)), of("prose", (1, 4), (3, 2)), of("maths", (2, 3), (0, 1))
    rows = _run(*files).table("Experts: the share of the better half that both keep; by chance 40.0%")
    assert rows["code"][1:] == ["100.0%", "75.0%", "0.0%"]
    assert rows["prose"][1:] == ["75.0%", "100.0%", "0.0%"]
    assert expert_choice(files[:1]) is None
    assert (
        expert_choice([*files[:1], ScoresFile("moe", Path("moe"), Scores({"expert": np.ones((3, 8))}, {}), {})]) is None
    )


def test_kept_importance_of_experts_and_their_neurons() -> None:
    scores = _experts()
    plan = from_scores(scores, MOE, MOE.with_(layer=2, expert=3, expert_ffn=8))
    found = {a.axis: a for a in axes_kept(plan, ScoresFile("moe", Path("moe.safetensors"), scores, {}))}
    layers = plan.kept["layer"]
    for row, layer in enumerate(layers):
        experts = plan.kept["expert"][row]
        whole = scores.values["expert"][layer]
        assert found["expert"].importance[row] == pytest.approx(whole[experts].sum() / whole.sum())
        neurons = scores.values["expert_ffn"][layer][experts]
        kept = sum(neurons[e][plan.kept["expert_ffn"][row, e]].sum() for e in range(3))
        assert found["expert_ffn"].importance[row] == pytest.approx(kept / neurons.sum())
    assert found["expert_ffn"].mask.shape == (2, 24)
    np.testing.assert_allclose(found["expert_ffn"].mask.sum(1), 8)
    assert found["expert_ffn"].rows == tuple(f"layer {i}" for i in layers)


def test_scores_that_are_not_finite_are_said_not_drawn() -> None:
    scores = Scores({"hidden": np.array([1.0, np.nan])}, {})
    shown = _run(ScoresFile("bad", Path("bad.safetensors"), scores, {}))
    assert "not finite" in shown.text
    assert "svg" not in shown.tags


def test_an_accuracy_curve_is_best_where_it_is_highest() -> None:
    """Every depth metric but the known losses is an accuracy: higher is better."""
    scores = Scores({"layer": np.ones(4)}, {"depth": {"winogrande.2": {"full": 0.7, "samples": 10}}})
    raw = {"depth.winogrande.2": np.array([0.5, 0.66, 0.6])}
    shown = _run(ScoresFile("s", Path("s.safetensors"), scores, raw))
    assert "Least harm: without layers 1–2 (0.66)" in shown.text
