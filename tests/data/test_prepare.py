"""Raw sources to token files: every format, the cache, resuming, processes."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.data import encode, prepare, readers
from minitron_cli.data.prepare import default_cache, make_job, run_job, token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from tests.data.corpora import byte_level, documents, write_jsonl

TEXTS = documents(120)


def tokens_of(spec: str | Path, tokenizer_dir: Path, **options: str) -> TokenFile:
    return token_files(parse_sources([str(spec)]), tokenizer_dir, **options)[0]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def write_parquet(file: Path, texts: list[str], row_group_size: int = 17) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, file, row_group_size=row_group_size)
    return file


def write_json_array(file: Path, texts: list[str]) -> Path:
    file.write_text(json.dumps([{"text": text} for text in texts], indent=1))
    return file


def write_directory(path: Path, texts: list[str]) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / ".hidden").mkdir()
    write_jsonl(path / "a.jsonl", texts[:30])
    write_jsonl(path / "deep" / "b.jsonl", texts[30:])
    write_jsonl(path / ".hidden" / "c.jsonl", ["not read"])
    (path / "README.md").write_text("not data")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.parquet", write_parquet),
        ("d.json", write_json_array),
        ("lines.json", write_jsonl),
        ("directory", write_directory),
    ],
)
def test_every_format_gives_the_tokens_of_its_text(
    name: str, write: Callable[[Path, list[str]], Path], tmp_path: Path, tokenizer_dir: Path
) -> None:
    expected = tokens_of(write_jsonl(tmp_path / "plain.jsonl", TEXTS), tokenizer_dir)
    found = tokens_of(write(tmp_path / name, TEXTS), tokenizer_dir)
    assert (found.tokens == expected.tokens).all()
    assert (found.documents["end"] == expected.documents["end"]).all()
    assert (found.documents["byte_end"] == expected.documents["byte_end"]).all()


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path, tokenizer_dir: Path) -> None:
    for index in (2, 0, 1):
        write_jsonl(tmp_path / f"part-{index}.jsonl", TEXTS[index * 40 : (index + 1) * 40])
    found = tokens_of(tmp_path / "part-*.jsonl", tokenizer_dir)
    expected = tokens_of(write_jsonl(tmp_path / "plain.jsonl", TEXTS), tokenizer_dir)
    assert (found.tokens == expected.tokens).all()
    assert [source["file"] for source in found.header.sources] == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]


def test_a_text_file_is_one_document_and_a_large_one_several_that_join_to_it(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(TEXTS) + "\nno newline at the end é"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    whole = tokens_of(tmp_path / "book.txt", tokenizer_dir)
    assert whole.header.num_documents == 1
    monkeypatch.setattr(readers, "TEXT_DOCUMENT_BYTES", 512)
    for piece_bytes in (512, 2048, 1 << 20):
        monkeypatch.setattr(readers, "PIECE_BYTES", piece_bytes)
        pieces = readers.split_file(tmp_path / "book.txt")
        fields = readers.find_fields(tmp_path / "book.txt", None)
        found = [document.text for piece in pieces for document in readers.read_piece(piece, fields)]
        assert "".join(found) == text
        assert len(found) > 10
        assert all(part.endswith("\n") for part in found[:-1])


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000])
def test_pieces_of_a_jsonl_file_hold_each_line_once(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", TEXTS[:20])
    file.write_bytes(file.read_bytes().replace(b"\n", b"\n\n", 3).rstrip(b"\n"))  # blank lines, no newline at the end
    monkeypatch.setattr(readers, "PIECE_BYTES", piece_bytes)
    fields = readers.find_fields(file, None)
    found = [document.text for piece in readers.split_file(file) for document in readers.read_piece(piece, fields)]
    assert found == TEXTS[:20]


def test_domains_are_kept_by_document(tmp_path: Path, tokenizer_dir: Path) -> None:
    names = [("code", "prose", "maths")[i % 3] for i in range(120)]
    file = tokens_of(write_jsonl(tmp_path / "d.jsonl", TEXTS, domain=names), tokenizer_dir)
    assert file.header.domains == ("code", "prose", "maths")
    assert [file.header.domains[number] for number in file.documents["domain"]] == names
    plain = tokens_of(write_jsonl(tmp_path / "stories.jsonl", TEXTS), tokenizer_dir)
    assert plain.header.domains == ("stories",)


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, tokenizer_dir: Path) -> None:
    rows = [{"text": "a cat"}, {"text": ""}, {"text": None}, {"text": "a mat"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tokens_of(tmp_path / "d.jsonl", tokenizer_dir)
    assert (file.header.num_documents, file.header.num_empty) == (2, 2)


def test_the_cache_is_keyed_by_content(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    first = tokens_of(source, tokenizer_dir)
    monkeypatch.setattr(prepare, "encode_all", _must_not_be_called)
    source.touch()
    assert tokens_of(source, tokenizer_dir).path == first.path
    monkeypatch.undo()
    monkeypatch.setenv("MINITRON_CACHE", str(tmp_path / "cache"))
    changes: list[Callable[[], TokenFile]] = [
        lambda: tokens_of(source, tokenizer_dir, separator="none"),
        lambda: tokens_of(source, byte_level(tmp_path / "other", seed=3)),
        lambda: tokens_of(write_jsonl(source, [*TEXTS, "more"]), tokenizer_dir),
    ]
    assert len({first.path.name, *(change().path.name for change in changes)}) == 4


def _must_not_be_called(*arguments: object) -> None:
    raise AssertionError("tokenised again")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    monkeypatch.setattr(prepare, "PIECE_BYTES", 2000)


@pytest.mark.usefixtures("small_pieces")
def test_a_resumed_tokenisation_is_byte_identical(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside each piece in turn, once after its tokens are written and before it is marked done."""
    source = write_jsonl(tmp_path / "d.jsonl", TEXTS, domain=[f"d{i % 7}" for i in range(120)])
    job = make_job(parse_sources([str(source)]), load_tokenizer(tokenizer_dir), "auto", None, default_cache())
    straight = run_job(job, tmp_path / "straight")
    assert len(job.tasks) > 5
    write_marker = encode.write_marker
    for survivor in range(len(job.tasks)):
        done: list[Path] = []

        def fail_once(file: Path, part: encode.Part, done: list[Path] = done) -> None:
            if done:
                raise KeyboardInterrupt
            done.append(file)
            write_marker(file, part)

        monkeypatch.setattr(encode, "write_marker", fail_once)
        out = tmp_path / "resumed"
        if survivor + 1 < len(job.tasks):
            with pytest.raises(KeyboardInterrupt):
                run_job(job, out)
            assert not out.exists()
    run_job(job, out)
    assert contents(out) == contents(straight.path)
    assert not list(tmp_path.glob(".*minitron*"))


@pytest.mark.usefixtures("small_pieces")
def test_parts_of_another_job_are_not_taken_over(tmp_path: Path, tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    source = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    old = make_job(parse_sources([str(source)]), tokenizer, "none", None, default_cache())
    parts = tmp_path / ".out.minitron-parts"
    parts.mkdir()
    (parts / "job").write_text(old.key())
    encode.encode_all(old.tasks[:3], old.how, tokenizer, parts, 1, lambda *_: None)
    new = make_job(parse_sources([str(source)]), tokenizer, "bos", None, default_cache())
    assert contents(run_job(new, tmp_path / "out").path) == contents(run_job(new, tmp_path / "fresh").path)


def test_several_processes_write_the_same_bytes(tmp_path: Path, tokenizer_dir: Path) -> None:
    for index in range(5):
        write_jsonl(tmp_path / f"part-{index}.jsonl", TEXTS[index * 24 : (index + 1) * 24])
    sources = parse_sources([str(tmp_path / "part-*.jsonl")])
    job = make_job(sources, load_tokenizer(tokenizer_dir), "auto", None, default_cache())
    one = run_job(job, tmp_path / "one", workers=1)
    reports: list[tuple[int, int, int]] = []
    two = run_job(job, tmp_path / "two", workers=2, progress=lambda *report: reports.append(report))
    assert contents(one.path) == contents(two.path)
    assert reports[0][0] == 0
    assert reports[-1][:2] == (reports[0][1],) * 2
    assert reports[-1][2] == one.header.num_tokens


def test_processes_that_want_one_file_make_it_once(tmp_path: Path, tokenizer_dir: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        found = pool.starmap(_open_hash, [(str(source), str(tokenizer_dir), str(tmp_path / "cache"))] * 3)
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_file_that_appears_between_two_looks_is_used(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = write_jsonl(tmp_path / "d.jsonl", TEXTS), tmp_path / "cache"
    job = make_job(parse_sources([str(source)]), load_tokenizer(tokenizer_dir), "auto", None, cache)
    check = prepare.check_token_output

    def meanwhile(*args: object) -> None:
        monkeypatch.setattr(prepare, "check_token_output", check)
        run_job(job, tmp_path / "out")  # as another process would
        check(*args)

    monkeypatch.setattr(prepare, "check_token_output", meanwhile)
    assert run_job(job, tmp_path / "out").path == tmp_path / "out"


def _open_hash(source: str, tokenizer_dir: str, cache: str) -> str:
    return token_files(parse_sources([source]), Path(tokenizer_dir), cache_dir=Path(cache))[0].header.tokens_sha256


def test_a_token_directory_is_used_as_it_is(tmp_path: Path, tokenizer_dir: Path) -> None:
    made = tokens_of(write_jsonl(tmp_path / "d.jsonl", TEXTS), tokenizer_dir)
    used = tokens_of(made.path, tokenizer_dir)
    assert used.path == made.path
    with pytest.raises(MinitronError, match="made with another tokenizer"):
        tokens_of(made.path, byte_level(tmp_path / "other", seed=3))
    with pytest.raises(MinitronError, match=r"made with --separator bos\+eos, not none"):
        tokens_of(made.path, tokenizer_dir, separator="none")


def test_tokens_of_the_real_text(shared_data: Path) -> None:
    """The stories model begins each story with BOS: its own tokenizer, story by story, is the oracle."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260K")
    lines = (shared_data / "stories_eval.jsonl").read_text(encoding="utf-8").splitlines()
    file = tokens_of(shared_data / "stories_eval.jsonl", shared_data / "stories260K", separator="bos")
    expected = np.concatenate([tokenizer(json.loads(line)["text"])["input_ids"] for line in lines])
    assert (np.asarray(file.tokens) == expected).all()
    assert file.header.domains == ("stories",)
