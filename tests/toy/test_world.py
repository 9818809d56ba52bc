"""The toy world, read back from its files: same seed, same bytes; no fact contradicts another; one answer each."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.errors import MinitronError
from minitron_cli.toy.world import Size, make_toy

SMALL = Size(train_characters=150_000, valid_characters=30_000, questions=60)
SKILLS = ("facts", "story", "arithmetic", "brackets", "recall")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "world"
    make_toy(path, 0, SMALL)
    return path


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def texts(world: Path, domain: str) -> list[str]:
    every = rows(world / "corpus" / "train.jsonl") + rows(world / "corpus" / "valid.jsonl")
    return [row["text"] for row in every if row["domain"] == domain]


def test_the_seed_decides_every_byte(world: Path, tmp_path: Path) -> None:
    def digests(path: Path) -> dict[str, str]:
        return {str(f.relative_to(path)): file_digest(f) for f in path.rglob("*") if f.is_file()}

    make_toy(tmp_path / "again", 0, SMALL)
    make_toy(tmp_path / "other", 1, SMALL)
    first, again, other = digests(world), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert first == again
    same = {name for name in first if first[name] == other[name]}
    assert not {name for name in same if name.startswith("corpus") or name.endswith(".jsonl")}


def test_people_are_the_same_in_every_story(world: Path) -> None:
    said = defaultdict(set)
    for text in texts(world, "stories"):
        for pattern in (
            r"(\w+) (the) (\w+) (?:found|bought|made|got)",
            r"(\w+) (lives) in (\w+)",
            r"(\w+) (loves) the (\w+)",
        ):
            for name, what, value in re.findall(pattern, text):
                said[name, what].add(value)
    assert len(said) == 24 * 3
    assert all(len(values) == 1 for values in said.values())


def test_a_story_agrees_with_itself(world: Path) -> None:
    seen = 0
    for text in texts(world, "stories"):
        told = re.findall(r"a (\w+) (\w+) \.", text)
        assert len(dict(told)) == len(told)
        for colour, item in re.findall(r"(?:saw|took|lost|hid) the (\w+) (\w+) \.", text):
            assert dict(told)[colour] == item
            seen += 1
    assert seen > 100


def test_sums_are_right_and_the_graded_ones_are_never_shown(world: Path) -> None:
    shown = [line for text in texts(world, "arithmetic") for line in text.splitlines()]
    for line in shown:
        a, b, c = map(int, re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line).groups())
        assert a + b == c
    graded = {row["context"].splitlines()[-1] for row in rows(world / "tasks" / "toy_arithmetic.jsonl")}
    assert graded
    assert not graded & {line.split("=")[0] + "=" for line in shown}


def test_brackets_balance(world: Path) -> None:
    for text in texts(world, "brackets"):
        left = text.replace(" ", "")
        while left != (left := re.sub(r"\(\)|\[\]|\{\}|<>", "", left)):
            pass
        assert left == ""


def test_recall_is_a_function_of_the_key(world: Path) -> None:
    for text in texts(world, "recall"):
        words = text.split()
        assert len(set(zip(words[::2], words[1::2]))) == len(set(words[::2]))


@pytest.mark.parametrize("skill", SKILLS)
def test_questions_have_four_choices_and_one_answer(world: Path, skill: str) -> None:
    graded = rows(world / "tasks" / f"toy_{skill}.jsonl")
    assert len(graded) == SMALL.questions
    for row in graded:
        assert len(set(row["choices"])) == len(row["choices"]) == 4
        assert answer(world, skill, row["context"]) == row["choices"][row["gold"]].strip()
    assert min(Counter(row["gold"] for row in graded).values()) > SMALL.questions / 12


def answer(world: Path, skill: str, context: str) -> str:
    """Solve a question by reading, not by the generator."""
    words = context.split()
    if skill == "arithmetic":
        return str(sum(map(int, context.splitlines()[-1].rstrip("=").split("+"))))
    if skill == "brackets":
        left = context.replace(" ", "")
        while left != (left := re.sub(r"\(\)|\[\]|\{\}|<>", "", left)):
            pass
        return dict(zip("([{<", ")]}>"))[left[-1]]
    if skill == "recall":
        return words[words.index(words[-1]) + 1]
    if skill == "story":
        return words[words.index(words[-1]) + 1]
    name, cue = (words[-2], words[-1]) if words[-1] == "the" and words[-2] != "loves" else (words[-3], words[-2])
    pattern = {"the": rf"{name} the (\w+)", "lives": rf"{name} lives in (\w+)", "loves": rf"{name} loves the (\w+)"}[
        cue
    ]
    return re.search(pattern, " ".join(texts(world, "stories"))).group(1)


def test_the_tokenizer_loads_and_a_word_is_a_token(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "teacher-init")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = texts(world, "stories")[0] + "\n\u00e9 12+34=46"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.tokenize(" kite") == ["\u0120kite"]
    assert len(tokenizer.tokenize("1234")) == 4


def test_the_teacher_is_a_config_without_weights_and_with_distinct_sizes(world: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = world / "teacher-init"
    assert not list(path.glob("*.safetensors"))
    config = AutoConfig.from_pretrained(path)
    sizes = [
        config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
        config.num_attention_heads, config.num_key_value_heads, config.head_dim,
    ]  # fmt: skip
    assert len(set(sizes)) == len(sizes)
    model = AutoModelForCausalLM.from_config(config)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(config.initializer_range, rel=0.05)


def test_the_harness_finds_the_tasks_where_the_world_was_moved_to(world: Path, tmp_path: Path) -> None:
    import shutil

    from minitron_cli.evaluate.tasks import find_tasks

    moved = tmp_path / "elsewhere"
    shutil.copytree(world, moved)
    found = find_tasks(["toy"], [moved / "tasks"])
    assert found.leaves("toy") == tuple(f"toy_{skill}" for skill in SKILLS)
    assert len(found.manager.load(["toy"])["tasks"]["toy_recall"].eval_docs) == SMALL.questions


def test_the_command_and_its_dry_run(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from minitron_cli.cli.app import app

    line = ["toy", str(tmp_path / "w"), "--questions", "10"]
    shown = CliRunner().invoke(app, [*line, "--dry-run"])
    assert shown.exception is None
    assert not (tmp_path / "w").exists()
    made = CliRunner().invoke(app, [*line, "--json"])
    assert json.loads(made.stdout)["questions"] == 50
    assert len(rows(tmp_path / "w" / "tasks" / "toy_recall.jsonl")) == 10
    assert isinstance(CliRunner().invoke(app, [*line, "--dry-run"]).exception, MinitronError)


def test_an_existing_directory_is_refused_and_only_ours_is_replaced(world: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="exists already"):
        make_toy(world, 0, SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(MinitronError, match="not made by minitron"):
        make_toy(tmp_path / "mine", 0, SMALL, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
