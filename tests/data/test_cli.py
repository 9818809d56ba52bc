"""`minitron data tokenize` as typed: outputs, streams, exit codes."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minitron_cli.__main__ import run
from minitron_cli.data import encode
from minitron_cli.data.tokens import TokenFile
from tests.data.corpora import byte_level, documents, write_jsonl

Capture = pytest.CaptureFixture[str]
TEXTS = documents(40)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "stories.jsonl", TEXTS)


def tokenize(*arguments: str | Path) -> int:
    return run(["data", "tokenize", *map(str, arguments)])


def test_a_token_file_is_made_and_found_again(
    source: Path, tokenizer_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "tokens"
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out) == 0
    said = capsys.readouterr()
    file = TokenFile.open(out)
    assert f"{out}: {file.header.num_tokens:,} tokens in 40 documents" in said.out
    assert said.out.strip().splitlines()[-1].startswith("next: minitron importance")
    assert "tokenising 1 piece(s)" in said.err
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == file.header.num_tokens
    assert facts["output"] == str(out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_place_that_takes_no_files(source: Path, tokenizer_dir: Path, dry: list[str], capsys: Capture) -> None:
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", "/proc/tokens", *dry) == 1
    assert "error: /proc/tokens cannot be written: /proc takes no files" in capsys.readouterr().err


def test_the_manifest_covers_every_file(source: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out, "--separator", "none") == 0
    manifest = json.loads((out / "minitron.json").read_text())
    assert manifest["verb"] == "data tokenize"
    assert manifest["options"] == {"separator": "none", "text_field": "text"}
    assert set(manifest["files"]) == {"tokens.bin", "documents.npy", "header.json"}
    assert manifest["files"]["tokens.bin"] == TokenFile.open(out).header.tokens_sha256


def test_dry_run_estimates_and_writes_nothing(
    source: Path, tokenizer_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "tokens"
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out, "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out, "--dry-run") == 0
    assert f"would write {out}" in capsys.readouterr().out
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out) == 0
    found = TokenFile.open(out).header.num_tokens
    assert found <= facts["estimated_tokens"] < 1.5 * found  # it counts the quotes and keys of JSON as text


def test_a_dry_run_refuses_a_disk_that_is_too_small(
    source: Path, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", tmp_path / "tokens", "--dry-run") == 1
    assert "tokens needs 0.0 MB and its disk has 0.0 MB free" in capsys.readouterr().err


def test_a_dry_run_looks_into_every_source(tokenizer_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    """The first source has few bytes and many tokens for each; the second is text."""
    rare = write_jsonl(tmp_path / "rare.jsonl", ["\u4e16\u754c" * 20] * 4)
    line = [rare, write_jsonl(tmp_path / "text.jsonl", TEXTS), "--tokenizer", tokenizer_dir, "-o", tmp_path / "tokens"]
    assert tokenize(*line, "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert tokenize(*line) == 0
    found = TokenFile.open(tmp_path / "tokens").header.num_tokens
    assert found <= facts["estimated_tokens"] < 1.5 * found


def test_the_environment_gives_defaults(
    source: Path, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINITRON_TOKENIZER", str(tokenizer_dir))
    monkeypatch.setenv("MINITRON_OUTPUT", str(tmp_path / "tokens"))
    monkeypatch.setenv("MINITRON_SEPARATOR", "bos")
    assert tokenize(source) == 0
    assert TokenFile.open(tmp_path / "tokens").header.separator == "bos"


ERRORS: list[tuple[list[str], str, str]] = [
    ([], "needs SOURCE..., --tokenizer MODEL, -o DIRECTORY", "minitron data tokenize stories.jsonl"),
    (["{source}", "-o", "{out}"], "needs --tokenizer MODEL", "--tokenizer MODEL"),
    (["{source}:0.5", "--tokenizer", "{model}", "-o", "{out}"], "a token file has no weights", "--data"),
    (["{source}", "--tokenizer", "{tmp}", "-o", "{out}"], "no tokenizer in", "tokenizer.json"),
    (["{source}", "--tokenizer", "{tmp}/nowhere", "-o", "{out}"], "no such directory", "directory of a model"),
    (["{tmp}/none.jsonl", "--tokenizer", "{model}", "-o", "{out}"], "no such file or directory", "did you mean"),
    (["{source}", "--tokenizer", "{model}", "-o", "{tmp}"], "contains the input", "another output"),
    (
        ["{source}", "--tokenizer", "{model}", "-o", "{out}", "--separator", "x"],
        "unknown separator 'x'",
        "one of: auto",
    ),
    (["{source}", "--tokenizer", "{model}", "-o", "{out}", "--text-field", "x"], "no text field 'x'", "columns: text"),
    (["{source}", "--tokenizer", "{model}", "-o", "{out}", "--workers", "0"], "0 workers", "1 or more"),
    (["{made}", "--tokenizer", "{model}", "-o", "{out}"], "is a token file already", "give it to --data as it is"),
    (["{source}", "--tokenizer", "{other}", "-o", "{made}"], "made with other settings: tokenizer hash", "--overwrite"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), ERRORS, ids=[row[1][:30] for row in ERRORS])
def test_what_can_not_be_done_is_said(
    source: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    message: str,
    hint: str,
) -> None:
    names = {"source": source, "model": tokenizer_dir, "tmp": tmp_path, "out": tmp_path / "out"}
    names |= {"made": tmp_path / "made", "other": tmp_path / "other"}
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", tmp_path / "made") == 0
    byte_level(tmp_path / "other", seed=5)
    capsys.readouterr()
    assert tokenize(*(argument.format(**names) for argument in arguments)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert any(line.startswith("error: ") and message in line for line in said.err.splitlines())
    assert any(line.startswith("hint: ") and hint in line for line in said.err.splitlines())
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_what_minitron_made(source: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out) == 0
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", out, "--separator", "bos", "--overwrite") == 0
    assert TokenFile.open(out).header.separator == "bos"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_killed_and_typed_again(tokenizer_dir: Path, tmp_path: Path) -> None:
    """SIGKILL after the first part: nothing at the output, and the same line ends in the same bytes."""
    for index in range(6):
        write_jsonl(tmp_path / f"part-{index}.jsonl", TEXTS)
    pattern, out = tmp_path / "part-*.jsonl", tmp_path / "tokens"
    killer = (
        "import os, signal\n"
        "from minitron_cli.data import encode\n"
        "from minitron_cli.__main__ import main\n"
        "write = encode.write_marker\n"
        "def then_die(file, part):\n"
        "    write(file, part)\n"
        "    if '00002' in file.name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "encode.write_marker = then_die\n"
        "main()\n"
    )
    line = ["data", "tokenize", str(pattern), "--tokenizer", str(tokenizer_dir), "-o", str(out)]
    killed = subprocess.run([sys.executable, "-c", killer, *line], capture_output=True, check=False)
    assert killed.returncode == -9
    assert not out.exists()
    assert len(list((tmp_path / ".tokens.minitron-parts").glob("part-*.json"))) == 3
    assert run(line) == 0
    assert run([*line[:-1], str(tmp_path / "straight")]) == 0
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "straight" / file.name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_processes_do_not_outlive_a_killed_run(tokenizer_dir: Path, tmp_path: Path) -> None:
    for index in range(4):
        write_jsonl(tmp_path / f"part-{index}.jsonl", TEXTS)
    killer = (
        "import multiprocessing, os, signal, sys\n"
        "from minitron_cli.__main__ import main\n"
        "from minitron_cli.data import prepare\n"
        "encode = prepare.encode_all\n"
        "def die(done, total, tokens):\n"
        "    if done:\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare.encode_all = lambda *arguments: encode(*arguments[:-1], die)\n"
        "if __name__ == '__main__': main()\n"
    )
    (tmp_path / "killer.py").write_text(killer)
    line = ["data", "tokenize", str(tmp_path / "part-*.jsonl"), "--tokenizer", str(tokenizer_dir), "--workers", "2"]
    command = [sys.executable, str(tmp_path / "killer.py"), *line, "-o", str(tmp_path / "tokens")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    children = [int(pid) for pid in killed.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("size", "message"), [("64k", "no space left for tokens"), ("700k", "its disk has")])
def test_a_full_disk_is_an_error(
    size: str, message: str, tokenizer_dir: Path, tmp_path: Path, capsys: Capture, small_disk: Callable[[str], Path]
) -> None:
    """While the parts are written, and when they are to be joined: on a real file system of that size."""
    source = write_jsonl(tmp_path / "stories.jsonl", documents(2500))
    disk = small_disk(size)
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", disk / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert message in next(line for line in said if line.startswith("error: "))
    assert any(line.startswith("hint: free some space") for line in said)
    assert not (disk / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """small_disk("64k") -> a mounted tmpfs of that size, or a skip where one may not mount."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs is not allowed here")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


def test_finished_parts_survive_a_full_disk(
    source: Path, tokenizer_dir: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encode, "_write_index", full)
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 1
    assert "finished parts are kept in" in capsys.readouterr().err
    monkeypatch.undo()
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 0
    assert not list(tmp_path.glob(".*"))


def test_heavy_libraries_stay_out(source: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """A local .jsonl and a tokenizer.json need neither torch nor transformers nor datasets."""
    script = (
        "import sys\n"
        "from minitron_cli.__main__ import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    line = ["data", "tokenize", str(source), "--tokenizer", str(tokenizer_dir), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_pipe_gives_the_tokens_of_the_file(
    source: Path, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "txt":
        source = tmp_path / "plain.txt"
        source.write_text("\n".join(TEXTS))
    assert tokenize(source, "--tokenizer", tokenizer_dir, "-o", tmp_path / "of-file") == 0
    of_file = (tmp_path / "of-file" / "tokens.bin").read_bytes()
    with source.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert tokenize("-", "--tokenizer", tokenizer_dir, "-o", tmp_path / "of-stdin") == 0
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(source.read_bytes()))
    writer.start()
    assert tokenize(tmp_path / "fifo", "--tokenizer", tokenizer_dir, "-o", tmp_path / "of-fifo") == 0
    writer.join()
    for name in ("of-stdin", "of-fifo"):
        assert (tmp_path / name / "tokens.bin").read_bytes() == of_file
    assert not list(Path(os.environ["MINITRON_CACHE"]).glob("pipe-*"))


def test_standard_input_is_named_once(tokenizer_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    assert tokenize("-", "/dev/stdin", "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 1
    assert "standard input is named twice" in capsys.readouterr().err


def test_a_pipe_that_gives_nothing_is_named(
    tokenizer_dir: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert tokenize("-", "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 1
    assert "error: standard input is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_another_encoding_is_named(name: str, tokenizer_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    row = '{"text": "caf\u00e9"}'
    (tmp_path / name).write_bytes((f"[{row}]" if name == "rows.json" else f"{row}\n").encode("latin-1"))
    assert tokenize(tmp_path / name, "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 1
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_a_line_of_brackets_without_end_is_named(tokenizer_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    deep = "[" * 200_000 + "]" * 200_000
    lines = ['{"text": "a cat"}', f'{{"text": "b", "x": {deep}}}']
    (tmp_path / "deep.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "deep.json").write_text(f"[{deep}]")
    for name, message in (("deep.jsonl", "line 2 is not a JSON object"), ("deep.json", "is not JSON")):
        assert tokenize(tmp_path / name, "--tokenizer", tokenizer_dir, "-o", tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
