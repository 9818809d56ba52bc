"""What `--data` values mean, and what wrong ones say."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import HubName, held_out_sources, parse_source, parse_sources
from minitron_cli.errors import MinitronError
from tests.data.corpora import write_jsonl


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of data to stand in."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "stories.jsonl", ["a cat"])
    write_jsonl(tmp_path / "odd:0.5", ["a cat"])
    (tmp_path / "code").mkdir()
    write_jsonl(tmp_path / "code" / "one.jsonl", ["a mat"])
    write_jsonl(tmp_path / "code" / "two.jsonl", ["a mat"])
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "hub", "weight"),
    [
        ("wikitext:wikitext-2-raw-v1:train", HubName("wikitext", "wikitext-2-raw-v1", "train"), None),
        ("wikitext:wikitext-2-raw-v1:train:0.25", HubName("wikitext", "wikitext-2-raw-v1", "train"), 0.25),
        ("roneneldan/TinyStories", HubName("roneneldan/TinyStories", None, "train"), None),
        ("roneneldan/TinyStories:validation:2", HubName("roneneldan/TinyStories", None, "validation"), 2.0),
        ("allenai/c4:en", HubName("allenai/c4", "en", "train"), None),
        ("allenai/c4::train[:1%]", HubName("allenai/c4", None, "train[:1%]"), None),
    ],
)
def test_datasets_names(here: Path, spec: str, hub: HubName, weight: float | None) -> None:
    source = parse_source(spec)
    assert (source.hub, source.weight, source.files, source.tokens) == (hub, weight, (), None)


@pytest.mark.parametrize(
    ("spec", "files", "name", "weight"),
    [
        ("stories.jsonl", ["stories.jsonl"], "stories", None),
        ("stories.jsonl:0.7", ["stories.jsonl"], "stories", 0.7),
        ("code/:3e-1", ["code/one.jsonl", "code/two.jsonl"], "code", 0.3),
        ("code", ["code/one.jsonl", "code/two.jsonl"], "code", None),
        ("code/t*.jsonl:1", ["code/two.jsonl"], "t", 1.0),
        ("**/*.jsonl", ["code/one.jsonl", "code/two.jsonl", "stories.jsonl"], None, None),
    ],
)
def test_local_names(here: Path, spec: str, files: list[str], name: str | None, weight: float | None) -> None:
    source = parse_source(spec)
    assert [str(file) for file in source.files] == files
    assert source.weight == weight
    assert name is None or source.name == name
    assert source.hub is None


def test_a_file_may_end_like_a_weight(here: Path) -> None:
    (here / "a.txt:1").mkdir()
    write_jsonl(here / "a.txt:1" / "x.jsonl", ["a"])
    assert parse_source("a.txt:1").weight is None


def model(path: Path) -> None:
    path.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (path / name).write_text("{}")


def binary(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00caf\xe9")


# what to make, --data, --text-field, what the error says, what its hint says
ERRORS: list[tuple[Callable[[Path], object] | None, str, str | None, str, str]] = [
    (None, "storeis.jsonl", None, "no such file or directory: storeis.jsonl", "did you mean 'stories.jsonl'?"),
    (None, "nowhere/x.jsonl", None, "no such file or directory", "there is no directory nowhere either"),
    (None, "no*.jsonl", None, "no file matches no*.jsonl", "quote it in the shell"),
    (None, "", None, "names no source", "give a .jsonl"),
    (None, ":0.5", None, "names no source", "give a .jsonl"),
    (None, "stories.jsonl:-1", None, "the weight -1 is not a number above 0", "SOURCE:0.7"),
    (None, "stories.jsonl:nan", None, "the weight nan is not a number above 0", "SOURCE:0.7"),
    (None, "a:b:c:d", None, "cannot be read", "name:config:split"),
    (None, "odd:0.5", None, "not data that minitron reads", "known: .jsonl"),
    (lambda d: (d / "e.jsonl").touch(), "e.jsonl", None, "e.jsonl is empty", "holds text"),
    (lambda d: (d / "e.jsonl").write_text("\n\n"), "e.jsonl", None, "e.jsonl has no records", "holds text"),
    (lambda d: model(d / "model"), "model", None, "is a model directory, not data", "give a .jsonl"),
    (lambda d: (d / "empty").mkdir(), "empty", None, "holds no .jsonl", "give a .jsonl"),
    (lambda d: (d / "code" / "x.txt").write_text("x"), "code", None, "several kinds of file: .jsonl, .txt", "glob"),
    (
        lambda d: write_jsonl(d / "e.jsonl", [""]),
        "e.jsonl",
        None,
        "no text in e.jsonl: every document is empty",
        "--text",
    ),
    (
        lambda d: (d / "t.jsonl").write_text("Once upon a time\nthere was"),
        "t.jsonl",
        None,
        "t.jsonl: line 1 is not a JSON object",
        "plain text belongs in a .txt file",
    ),
    (
        lambda d: (d / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n["c"]\n'),
        "t.jsonl",
        None,
        "t.jsonl: line 4 is not a JSON object",
        "one JSON object per line",
    ),
    (
        lambda d: (d / "t.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n'),
        "t.jsonl",
        None,
        "t.jsonl: line 2 is not UTF-8 text: byte 13",
        "iconv",
    ),
    (
        lambda d: (d / "t.jsonl").write_text('{"id": 1, "title": "x", "body": "y"}\n'),
        "t.jsonl",
        None,
        "which column of t.jsonl is the text? its columns: id (not text), title, body",
        "--text-field",
    ),
    (
        lambda d: (d / "t.jsonl").write_text('{"id": 1}\n'),
        "t.jsonl",
        None,
        "its columns: id (not text)",
        "--text-field",
    ),
    (None, "stories.jsonl", "body", "stories.jsonl has no text field 'body'", "its columns: text"),
    (
        lambda d: (d / "t.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n'),
        "t.jsonl",
        None,
        "at byte 14: no field 'text'",
        "its fields: body",
    ),
    (
        lambda d: (d / "t.jsonl").write_text('{"text": "a"}\n{"text": 7}\n'),
        "t.jsonl",
        None,
        "field 'text' is not text but int",
        "clean the data",
    ),
    (
        lambda d: (d / "t.jsonl").write_text('{"text": "a\\ud800b"}\n'),
        "t.jsonl",
        None,
        "half a surrogate pair",
        "repair the escape",
    ),
    (lambda d: binary(d / "b.txt"), "b.txt", None, "b.txt is not UTF-8 text: byte 0", "iconv"),
    (lambda d: binary(d / "b.parquet"), "b.parquet", None, "b.parquet is not a parquet file", "again"),
    (lambda d: (d / "j.json").write_text("[1, 2]"), "j.json", None, "element 0 is not an object", "array of objects"),
    (lambda d: (d / "j.json").write_text("[]"), "j.json", None, "the array is empty", "array of objects"),
    (lambda d: (d / "j.json").write_text("[{"), "j.json", None, "j.json is not JSON", "array of objects"),
    (None, "no-such-corpus:plain:train", None, "data set no-such-corpus (config plain, split train)", "local file"),
]


@pytest.mark.parametrize(("make", "spec", "text_field", "message", "hint"), ERRORS, ids=[row[3][:40] for row in ERRORS])
def test_bad_input_is_named(
    here: Path,
    tokenizer_dir: Path,
    make: Callable[[Path], object] | None,
    spec: str,
    text_field: str | None,
    message: str,
    hint: str,
) -> None:
    if make is not None:
        make(here)
    with pytest.raises(MinitronError) as caught:
        token_files(parse_sources([spec]), tokenizer_dir, text_field=text_field, cache_dir=here / "cache")
    assert message in caught.value.message
    assert hint in caught.value.hint
    made = here / "cache" / "tokens"
    assert not made.exists() or all(path.name.startswith(".") for path in made.iterdir())


def test_weights_are_for_all_or_for_none(here: Path) -> None:
    with pytest.raises(MinitronError, match="these have none: code/"):
        parse_sources(["stories.jsonl:0.7", "code/"])
    with pytest.raises(MinitronError, match="no data given"):
        parse_sources([])


def test_held_out_text_has_no_weight(here: Path) -> None:
    with pytest.raises(MinitronError, match=r"has a weight: stories\.jsonl:0\.7"):
        held_out_sources(["stories.jsonl:0.7"])
    assert held_out_sources(["stories.jsonl", "code/"]) == parse_sources(["stories.jsonl", "code/"])


def test_a_named_text_field_is_read(here: Path, tokenizer_dir: Path) -> None:
    rows = [{"text": "not this", "body": "a cat", "domain": "pets"}]
    (here / "t.jsonl").write_text(json.dumps(rows[0]) + "\n")
    file = token_files(parse_sources(["t.jsonl"]), tokenizer_dir, text_field="body", separator="none")[0]
    assert file.header.num_bytes == len("a cat")
    assert file.header.text_field == "body"
    assert file.header.domains == ("pets",)


def test_the_only_string_column_is_the_text(here: Path, tokenizer_dir: Path) -> None:
    (here / "t.jsonl").write_text('{"id": 3, "story": "a cat", "domain": "pets"}\n')
    assert token_files(parse_sources(["t.jsonl"]), tokenizer_dir)[0].header.text_field == "story"


def test_a_data_set_in_the_cache_of_datasets_is_read(here: Path, tokenizer_dir: Path) -> None:
    """A local script-less data set directory stands in for a name: the same calls, no network."""
    from minitron_cli.data.hub import hub_fingerprint, load_hub, read_rows, string_columns

    hub = HubName(str(here / "code"), None, "train")
    assert load_hub(hub).num_rows == 2
    assert string_columns(hub) == {"text": True}
    assert [record for _, record in read_rows(hub, 0, 2, ["text", None])] == [{"text": "a mat"}] * 2
    assert hub_fingerprint(hub) == hub_fingerprint(hub)


@pytest.mark.parametrize("spec", ["-", "/dev/stdin", "PIPE"])
def test_pipes_are_refused_where_a_source_is_read_again(spec, tmp_path):
    if spec == "PIPE":
        os.mkfifo(tmp_path / "pipe.jsonl")
        spec = str(tmp_path / "pipe.jsonl")
    with pytest.raises(MinitronError, match="is a pipe, which can be read once only") as error:
        parse_source(spec)
    assert "data tokenize -" in error.value.hint
