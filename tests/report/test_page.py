"""The page as a document: self-contained, well formed, the same every time, and honest about what is missing."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.__main__ import run as minitron
from minitron_cli.chain.state import load, save
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.errors import MinitronError
from minitron_cli.report.page import SECTIONS
from minitron_cli.report.write import report
from tests.prune.cutting import prune_to
from tests.report.fake_files import write_metrics
from tests.report.fake_recipe import RECIPE
from tests.report.fake_run import write_run
from tests.report.reading import Page

EVERYTHING = set(SECTIONS)


def test_every_section_is_there_in_order(page: Page) -> None:
    assert list(page.sections) == list(SECTIONS)
    assert all(words.strip() for words in page.sections.values())
    linked = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert [f"#{name}" for name in SECTIONS] == linked[1:]


def test_nothing_is_fetched_and_no_script_runs(page: Page, fake_run: Path) -> None:
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "style"):
            assert not re.search(r"https?:|//|@import|url\((?!#)", value.split("base64,")[0]), (tag, name, value[:80])
        assert not name.startswith("on"), (tag, name)
    style = re.search(r"<style>(.*?)</style>", (fake_run / "report.html").read_text(), re.S)
    assert style
    assert not re.search(r"url\(|@import|@font-face", style[1])


def test_ids_are_unique_and_every_reference_is_met(page: Page) -> None:
    twice = [name for name, count in Counter(page.ids).items() if count > 1]
    assert not twice
    for tag, name, value in page.attributes:
        for target in re.findall(r"url\(#([^)]+)\)", value) + re.findall(r"^#(.+)$", value):
            assert name not in ("href", "xlink:href", "clip-path", "style") or target in page.ids, (tag, name, target)


def test_pictures_have_words_and_tables_have_heads(page: Page) -> None:
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == page.tags.count("svg") > 40
    assert all(len(label) > 20 for label in labels)
    assert page.tags.count("caption") == page.tags.count("table") == page.tags.count("thead")


def test_colours_and_fonts_are_left_to_the_page(fake_run: Path) -> None:
    text = (fake_run / "report.html").read_text()
    assert "#01fe" not in text, "a stand-in was left"
    assert "DejaVu" not in text
    assert text.count("var(--ink)") > 50


def test_the_same_run_gives_the_same_bytes(fake_run: Path, tmp_path: Path) -> None:
    report(fake_run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (fake_run / "report.html").read_bytes()


def test_text_of_the_run_is_escaped(page: Page, fake_run: Path) -> None:
    assert "fewer layers <sic>" in page.text
    assert "sic" not in page.tags
    assert "&amp; one of fewer layers &lt;sic&gt;" in (fake_run / "report.html").read_text()


@pytest.mark.parametrize("until", ["world", "large", "scores-large", "middle-pruned", "middle", "figures"])
def test_a_run_that_is_still_going_on(tmp_path: Path, until: str) -> None:
    directory = write_run(tmp_path / "going", until)
    facts = report(directory)
    page = Page((directory / "report.html").read_text())
    have = {"world": set(), "large": {"family", "cost", "training"}, "figures": EVERYTHING - {"evaluation"}}
    if until in have:  # what is not there yet is left out, not said to be missing
        assert set(page.sections) == {"commands", *have[until]}
    assert list(page.sections) == [name for name in SECTIONS if name in page.sections]
    assert not facts["finished"]
    assert facts["steps"][until] == "begun"
    assert "in progress" in page.text
    assert "evaluation" not in page.sections
    assert "kept" not in page.sections or until not in ("large", "scores-large", "middle-pruned")
    names = [step.name for step in RECIPE.steps]
    coming = names[names.index(until) + 1 :]
    assert [name for name, state in facts["steps"].items() if state == "to come"] == coming
    assert page.sections["commands"].count("to come") == len(coming)
    assert facts["title"] == "fake", "known from the recipe before there is a family"
    if coming:
        assert f"{names.index(until)} of {len(names)} steps done" in page.text
    if until in ("large", "middle"):
        total = {"large": 120, "middle": 60}[until]
        assert f"{total // 2} of {total} steps" in page.sections["training"]
        model = next(m for m in facts["models"] if m["name"] == until)
        assert model["tokens"] == total // 2 * 2048
        assert model["loss_source"] == "training"


def test_one_output_of_distill_finished_and_not(fake_run: Path, tmp_path: Path) -> None:
    output = shutil.copytree(fake_run / "small", tmp_path / "small")
    facts = report(output)
    assert facts["output"] == str(output / "run" / "report.html"), "beside the checkpoint it would change its content"
    page = Page((output / "run" / "report.html").read_text())
    assert set(page.sections) == {"family", "lineage", "training", "commands"}
    assert "large" in page.sections["lineage"]
    assert "middle-pruned" in page.sections["lineage"]
    assert page.tables["Size, quality, speed and cost of every model; shares are of the largest, for accuracy above "
                       "chance"][0] == ["model", "parameters", "without embeddings", "KV bytes a token",
                                        "held-out loss (training)", "training tokens in all"]  # fmt: skip
    assert "Held-out text during the training of small" in page.tables
    (output / "minitron.json").unlink()
    facts = report(output)
    assert not facts["finished"]
    assert facts["models"][0]["state"] == "begun"


def test_a_source_that_the_evaluation_measured_is_what_the_family_is_compared_with(
    fake_run: Path, tmp_path: Path
) -> None:
    """The usual case: the largest model is none that the recipe makes."""
    directory = shutil.copytree(fake_run, tmp_path / "fake")
    save(directory, {name: record for name, record in load(directory).items() if name not in ("world", "large")})
    (directory / "family.json").unlink()
    content = json.loads((directory / "figures.json").read_text())
    evaluated = {model["name"]: model for model in content["models"]}
    small, large = evaluated["small"], evaluated["large"]
    large["parameters"] = 9_999_999
    (directory / "figures.json").write_text(json.dumps(content))
    facts = report(directory, tmp_path / "r.html")
    assert "large" not in [model["name"] for model in facts["models"]]
    page = Page((tmp_path / "r.html").read_text())
    rows = page.table("Size, quality, speed and cost")
    assert rows["large root"][1] == "9,999,999 100.0%"
    assert f"{small['loss'] - large['loss']:+.3f}" in page.sections["family"]
    assert f"{small['loss']:.3f} against {large['loss']:.3f}" in page.sections["family"]
    assert "large" in page.sections["lineage"]


def test_what_a_recurrent_model_holds_of_a_sequence_is_a_column(toy: Callable[..., Path], tmp_path: Path) -> None:
    """Two layers of short convolutions over 36 channels, with two of three taps to come, in two bytes each."""
    prune_to(toy("lfm2"), tmp_path / "small", {"hidden": 36})
    report(tmp_path / "small", output=tmp_path / "r.html")
    (table,) = (t for c, t in Page((tmp_path / "r.html").read_text()).tables.items() if c.startswith("Size, quality"))
    assert table[1][table[0].index("state bytes a sequence")] == f"{2 * 36 * 2 * 2}"


def test_one_output_of_prune_is_left_as_it_is(fake_run: Path, tmp_path: Path) -> None:
    output = shutil.copytree(fake_run / "small-pruned", tmp_path / "small-pruned")
    before = sorted(path.name for path in output.iterdir())
    facts = report(output)
    assert facts["output"] == str(tmp_path / "small-pruned.report.html")
    assert sorted(path.name for path in output.iterdir()) == before
    page = Page((tmp_path / "small-pruned.report.html").read_text())
    assert page.table("What small-pruned kept")["hidden channels"][1:4] == ["36", "24", "66.7%"]
    assert set(page.sections) == {"family", "lineage", "kept", "commands"}


def test_a_run_that_was_begun_a_moment_ago(tmp_path: Path) -> None:
    write_metrics(tmp_path / "new" / "run", steps=50, done=0, final=1.0, start=3.0, teacher=True, flops_per_token=1.0)
    (tmp_path / "new" / "run" / "metrics.jsonl").unlink()
    facts = report(tmp_path / "new")
    assert facts["models"][0]["tokens"] is None
    assert "No metrics yet of new" in Page((tmp_path / "new" / "run" / "report.html").read_text()).text


def test_only_family_json_was_kept(fake_run: Path, tmp_path: Path) -> None:
    shutil.copy(fake_run / "family.json", tmp_path)
    facts = report(tmp_path)
    expected = json.loads((fake_run / "family.json").read_text())["models"]
    assert [m["parameters"] for m in facts["models"]] == [m["parameters"] for m in expected]
    assert [m["loss"] for m in facts["models"]] == [m["evaluation"]["loss"] for m in expected]
    assert [m["tokens"] for m in facts["models"] if m["name"] == "small"] == [80 * 2048]


def test_figures_of_an_earlier_model_are_not_shown_as_its_own(fake_run: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(fake_run, tmp_path / "fake")
    manifest = json.loads((directory / "small" / "minitron.json").read_text())
    manifest["files"]["model.safetensors"] = "0" * 64
    (directory / "small" / "minitron.json").write_text(json.dumps(sealed(manifest)))
    facts = report(directory, dry_run=True)
    assert facts["problems"] == ["figures.json was measured on an earlier small: evaluate again"]
    assert [m["loss"] for m in facts["models"] if m["name"] == "small"] == [None]


def test_a_damaged_file_is_named_and_the_rest_is_shown(
    fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = shutil.copytree(fake_run, tmp_path / "fake")
    (directory / "figures.json").write_text('{"models": [')
    (directory / "scores-large.safetensors").write_bytes(b"no scores")
    (directory / "middle" / "config.json").unlink()
    assert minitron(["report", str(directory), "--json"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert len(facts["problems"]) == 3
    assert err.count("warning:") == 3
    page = Page((directory / "report.html").read_text())
    for problem in ("figures.json", "scores-large.safetensors", "middle"):
        assert problem in page.text
    assert facts["scores"] == ["scores-middle"]


def test_figures_that_are_not_finite_are_named_and_the_rest_is_shown(fake_run: Path, tmp_path: Path) -> None:
    """A diverged model: `eval` writes null for what JSON cannot say."""
    directory = shutil.copytree(fake_run, tmp_path / "fake")
    results = json.loads((directory / "figures.json").read_text())
    small = next(m for m in results["models"] if m["name"] == "small")
    small |= {"loss": None, "bits_per_byte": None}
    for figures in small["losses"].values():
        figures |= dict.fromkeys(("nats_per_token", "bits_per_byte", "kl"), None)
        figures["difference"] = {"difference": None, "stderr": None, "num_blocks": 70}
    next(row for row in results["rows"] if row["model"] == "small")["value"] = None
    (directory / "figures.json").write_text(json.dumps(results))
    facts = report(directory)
    assert facts["problems"] == []
    shown = Page((directory / "report.html").read_text())
    assert shown.sections["evaluation"].count("not finite") == 1 + 3
    assert "nan" not in shown.text.lower()
    assert next(m["loss"] for m in facts["models"] if m["name"] == "middle") == 1.377


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "there is no directory"),
        (lambda path: path, "is not a run"),
        (lambda path: _file(path / "file.txt"), "there is no directory"),
        (lambda path: _file(path / "minitron.json").parent, "is not a run"),  # of tokens, say: no model
    ],
)
def test_what_is_no_run_is_refused_with_a_hint(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MinitronError, match=message) as caught:
        report(make(tmp_path))
    assert "minitron" in caught.value.hint


def _file(path: Path) -> Path:
    path.write_text("no run")
    return path


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".minitron").mkdir()
    for content in ("{", "[]", '{"large": {"command": ["train", "x"]}}'):
        (tmp_path / ".minitron" / "state.json").write_text(content)
        with pytest.raises(MinitronError, match=r"state\.json"):
            report(tmp_path)


def test_a_file_that_is_no_report_is_never_replaced(fake_run: Path, tmp_path: Path) -> None:
    precious = _file(tmp_path / "thesis.html")
    with pytest.raises(MinitronError, match="not a report of minitron"):
        report(fake_run, precious)
    assert precious.read_text() == "no run"
    with pytest.raises(MinitronError, match="is a directory"):
        report(fake_run, tmp_path)


def test_a_dry_run_writes_nothing(fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert minitron(["report", str(fake_run), "-o", str(tmp_path / "x.html"), "--dry-run"]) == 0
    assert not (tmp_path / "x.html").exists()
    assert "would write" in capsys.readouterr().out


def test_without_a_run_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert minitron(["report"]) == 1
    assert "hint: type `minitron report runs/NAME`" in capsys.readouterr().err


def test_a_sheared_model_shows_its_training_and_its_cut(fake_run: Path, tmp_path: Path) -> None:
    """Its manifest is that of a cut, its run directory that of a training; alone, and as a step that goes on."""
    run = tmp_path / "run"
    shutil.copytree(fake_run, run)
    shutil.copytree(run / "middle" / "run", run / "middle-pruned" / "run")
    (run / "family.json").unlink()
    for file, old, new in (
        (run / ".minitron" / "state.json", '"prune",\n   "runs/fake/large"', '"shear",\n   "runs/fake/large"'),
        (run / "middle-pruned" / "run" / "options.json", '"verb": "distill"', '"verb": "shear"'),
    ):
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
    for directory in (run, run / "middle-pruned"):
        report(directory)
    for place in (run / "report.html", run / "middle-pruned" / "run" / "report.html"):
        page = Page(place.read_text())
        assert page.table("Held-out text during the training of middle-pruned")["60"]
        assert page.table("What middle-pruned kept, axis by axis")["MLP neurons"][:3] == ["MLP neurons", "120", "72"]
        assert "cosine schedule from 0.002" in page.sections["training"]
    (run / "middle-pruned" / "minitron.json").unlink()
    state = json.loads((run / ".minitron" / "state.json").read_text())
    state["middle-pruned"]["digest"] = ""
    (run / ".minitron" / "state.json").write_text(json.dumps(state))
    going = next(model for model in report(run)["models"] if model["name"] == "middle-pruned")
    assert (going["state"], going["parameters"]) == ("begun", None), "not the size of what it is cut from"
