"""A teacher that a server runs: what it says is what a recording of it holds, and what goes wrong is said."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.__main__ import run
from minitron_cli.errors import MinitronError
from minitron_cli.training import patience
from minitron_cli.training.cached_logits import client
from minitron_cli.training.cached_logits import served as served_module
from minitron_cli.training.cached_logits.record import record_teacher
from minitron_cli.training.cached_logits.served import connect
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
from minitron_cli.training.run import train
from minitron_cli.training.state import checkpoints, read_progress
from tests.training.runs import options, signal_after
from tests.training.server import Behaviour, serving

Toy = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_proxy_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)


def losses(output: Path) -> np.ndarray:
    return np.array([[line[n] for n in ("kd", "ce", "grad_norm")] for line in read_metrics(output / "run")])


@pytest.mark.parametrize("apart", [{}, {"cross_doc": False, "seq_len": 64}])
def test_training_from_a_server_is_training_from_a_recording(
    apart: dict[str, Any], toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    def line(name: str, of: Any) -> Options:
        return options(toy("llama"), text, tmp_path / name, of, top_k=8, steps=5, ce_weight=0.1, **apart)

    behaviour = Behaviour()
    record_teacher(line("x", teacher), tmp_path / "top")
    with serving(teacher, behaviour) as address:
        train(line("served", address))
        record_teacher(line("x", f"{address}#teacher"), tmp_path / "from-server")
    train(line("recorded", tmp_path / "top"))
    # Their float32 logits come from batches of other shapes, and are rounded to float16 on either way.
    np.testing.assert_allclose(losses(tmp_path / "served"), losses(tmp_path / "recorded"), rtol=2e-3)
    train(line("again", tmp_path / "from-server"))
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(tmp_path / "served"), rtol=1e-6)
    rows = [body for body in behaviour.asked if sum(map(len, body["prompt"])) in (line("x", teacher).seq_len, 64)]
    assert len(rows) >= 20
    assert any(len(body["prompt"]) > 1 for body in behaviour.asked) is bool(apart), "documents are read by themselves"
    assert 1 < behaviour.most <= served_module.IN_FLIGHT


def test_what_is_asked_is_the_models_own_distribution(toy: Toy, teacher: Path) -> None:
    with serving(teacher) as address:
        served = connect(address, toy("llama"), 97, 5)
        ids = np.random.default_rng(0).integers(0, 97, 12)
        found = served.layout(12).unpack([served.record(ids, np.array([0, 7]))])
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        rows = [model(torch.from_numpy(ids[a:b])[None]).logits[0].log_softmax(-1) for a, b in ((0, 7), (7, 12))]
    for rows_of_piece, begin in zip(rows, (0, 7)):
        for at, row in enumerate(rows_of_piece[:-1], begin):
            torch.testing.assert_close(found.log_probs[at].exp(), row.topk(5).values.exp(), rtol=2e-3, atol=1e-6)
            assert found.ids[at].tolist() == row.topk(5).indices.tolist()
            torch.testing.assert_close(found.tail[at].exp(), 1 - row.topk(5).values.exp().sum(), rtol=2e-3, atol=1e-5)


def test_what_passes_is_tried_again(toy: Toy, text: Path, teacher: Path, tmp_path: Path) -> None:
    troubled = Behaviour()

    def trouble(body: dict[str, Any]) -> dict[str, Any]:
        if not tripped:
            tripped.append(body)
        elif len(tripped) == 1:  # the first answer was to the question that is asked before a run
            tripped.append(body)
            troubled.fail, troubled.cut = [503, 503, 429], 2
        return body

    tripped: list[dict[str, Any]] = []
    troubled.spoil = trouble
    for name, behaviour in (("plain", Behaviour()), ("troubled", troubled)):
        with serving(teacher, behaviour) as address:
            train(options(toy("llama"), text, tmp_path / name, address, top_k=8, steps=3))
    assert (troubled.fail, troubled.cut) == ([], 0)
    assert len(troubled.asked) == 1 + 3 * 4 + 5
    assert np.array_equal(losses(tmp_path / "plain"), losses(tmp_path / "troubled"))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    """Interrupted, and behind another port."""
    with serving(teacher) as address:
        line = options(toy("llama"), text, tmp_path / "whole", address, top_k=8, steps=6)
        train(line)
        with signal_after(3):
            assert train(replace(line, output=str(tmp_path / "cut"))).stopped_by
    with serving(teacher) as address:
        train(replace(line, output=str(tmp_path / "cut"), teacher=(address,)))
    assert np.array_equal(losses(tmp_path / "whole"), losses(tmp_path / "cut"))
    with serving(teacher) as address, pytest.raises(MinitronError, match="--top-k 8 -> 9"):
        train(replace(line, teacher=(address,), top_k=9))


def test_a_server_that_is_lost_stops_the_run_at_its_last_step(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    behaviour = Behaviour()

    def lose(body: dict[str, Any]) -> dict[str, Any]:
        if len(behaviour.asked) > 10:
            behaviour.fail = [503] * 1000
        return body

    behaviour.spoil = lose
    with serving(teacher, behaviour) as address:
        line = options(toy("llama"), text, tmp_path / "out", address, top_k=8, save_every=100)
        with pytest.raises(MinitronError, match="does not answer after 7 tries: HTTP 503: try later") as caught:
            train(line)
    assert "goes on from the last step" in (caught.value.hint or "")
    assert 0 < read_progress(checkpoints(tmp_path / "out" / "run")[-1]).step < 12
    assert threading.active_count() < 10, "no thread asks any more"


def without_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    for choice in body["choices"]:
        del choice["prompt_logprobs"]
    return body


def other_ids(body: dict[str, Any]) -> dict[str, Any]:
    for choice in body["choices"]:
        for entry in choice["prompt_logprobs"][1:]:
            entry["97"] = {"logprob": -0.001}
    return body


def fewer(body: dict[str, Any]) -> dict[str, Any]:
    for choice in body["choices"]:
        choice["prompt_logprobs"][1:] = [dict([*entry.items()][:3]) for entry in choice["prompt_logprobs"][1:]]
    return body


WRONG: dict[str, tuple[Behaviour, str, str]] = {
    "no log-probabilities": (Behaviour(spoil=without_logprobs), "is not understood: an entry of", "vLLM"),
    "not a table": (Behaviour(spoil=lambda body: [body]), "is not understood: 1 choices were asked for", "vLLM"),
    "other ids": (Behaviour(spoil=other_ids), "another vocabulary than the student: it names id 97", "own family"),
    "another tokenizer": (
        Behaviour(shift=1),
        "another vocabulary than the student: a text has other ids",
        "own family",
    ),
    "too few": (Behaviour(spoil=fewer), "gives 3 log-probabilities a token, 8 were asked for", "--max-logprobs 8"),
    "not so many": (Behaviour(max_logprobs=5), "HTTP 400): Requested prompt logprobs of 8", "--max-logprobs 8"),
    "too short": (Behaviour(max_len=32), "reads 32 tokens, and a row has 32 and one", "--seq-len 31"),
    "several models": (Behaviour(names=("a", "b")), "serves a, b", "#NAME"),
    "broken": (Behaviour(cut=1000), "does not answer after 3 tries: what it sends is cut off", "is the server up"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_written(
    wrong: str, toy: Toy, text: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    behaviour, message, hint = WRONG[wrong]
    typed = ["distill", str(toy("llama")), "--data", str(text), "-o", str(tmp_path / "out"), "--steps", "2"]
    typed += ["--batch", "4", "--seq-len", "32", "--device", "cpu", "--top-k", "8", "--teacher"]
    with serving(teacher, behaviour) as address:
        assert run([*typed, address, "--dry-run"]) == run([*typed, address]) == 1
    error, hinted = capfd.readouterr().err.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert hint in hinted
    assert not (tmp_path / "out").exists()


def test_a_model_with_a_smaller_vocabulary_is_refused(toy: Toy, teacher: Path) -> None:
    """Where the server tokenises nothing, the largest id shows it."""
    message = "another vocabulary than the student: Token id 96 is out of"
    with (
        serving(toy("llama", vocab_size=80), Behaviour(tokenizes=False)) as address,
        pytest.raises(MinitronError, match=message),
    ):
        connect(address, teacher, 97, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ("http://127.0.0.1:9/v1",)}, "127.0.0.1:9/v1/models does not answer after 3 tries: "),
        ({"teacher": ("http://127.0.0.1:port/v1",)}, "is not an address"),
        ({"teacher": ("http://127.0.0.1:9/v1", "other")}, "is a served teacher, which cannot be mixed with others"),
        ({"temperature": 2.0}, "a server gives log-probabilities at temperature 1, not 2"),
        ({"loss": "logits+hidden"}, "needs the teacher's hidden states"),
        ({"stream": True}, "a recorded or served teacher needs token files"),
        ({"top_k": 97}, "--top-k 97 does not fit 97 ids"),
    ],
)
def test_what_a_server_cannot_do_is_refused(
    changes: dict[str, Any], message: str, toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    with serving(teacher) as address:
        line = replace(options(toy("llama"), text, tmp_path / "out", Path("x"), top_k=8), teacher=(address,))
        line = replace(line, **changes)
        with pytest.raises(MinitronError, match=re.escape(message)):
            train(line)
        with pytest.raises(MinitronError):
            record_teacher(line, tmp_path / "top", "sampled:8")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_the_teacher(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = ["distill", str(toy("llama")), "--data", str(text), "-o", str(tmp_path / "out"), "--steps", "2"]
    typed += ["--batch", "4", "--seq-len", "32", "--device", "cpu", "--top-k", "8", "--dry-run", "--json"]
    with serving(teacher) as address:
        assert run([*typed, "--teacher", address]) == 0
    assert json.loads(capfd.readouterr().out)["served teacher"] == f"teacher at {address}, the top 8"


KEY = "s3cret-0123456789"


def test_a_key_comes_from_the_environment_and_is_written_nowhere(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    typed = ["distill", str(toy("llama")), "--data", str(text), "-o", str(tmp_path / "out"), "--steps", "2"]
    typed += ["--batch", "4", "--seq-len", "32", "--device", "cpu", "--top-k", "8", "--teacher"]
    monkeypatch.setenv("OTHER_KEY", KEY)
    with serving(teacher, Behaviour(key=KEY)) as address:
        assert run([*typed, address, "--teacher-key-env", "OTHER_KEY"]) == 0
        monkeypatch.setenv(client.KEY_ENV, KEY)
        assert run([*typed, address, "--overwrite", "--steps", "1"]) == 0
        record_teacher(options(toy("llama"), text, tmp_path / "x", address, top_k=8, steps=1), tmp_path / "top")
    said = "".join(capfd.readouterr())
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert KEY not in said
    assert not any(KEY.encode() in content for content in written)


@pytest.mark.parametrize(
    ("variables", "name", "message", "hint"),
    [
        ({}, None, "refuses access (HTTP 401): wrong API key provided: None", "MINITRON_TEACHER_KEY, or --teacher-key"),
        ({"OTHER": "wr0ng"}, "OTHER", "refuses access (HTTP 403): wrong API key provided: Bearer ***", "key in OTHER"),
        ({"OTHER": "  "}, "OTHER", "there is no such environment variable, or it is empty", "export it"),
        ({}, "sk-very-secret", "takes the name of an environment variable, not a key", "e.g. MINITRON_TEACHER_KEY"),
        ({"OTHER": "wr0ng\nX-More: 1"}, "OTHER", "OTHER holds what no key can", "look at its value"),
    ],
)
def test_a_key_that_is_wrong(
    variables: dict[str, str], name: str | None, message: str, hint: str, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    behaviour = Behaviour(key=KEY)
    with serving(teacher, behaviour) as address, pytest.raises(MinitronError, match=re.escape(message)) as caught:
        connect(address, teacher, 97, 8, name)
    assert hint in (caught.value.hint or "")
    assert not re.search("wr0ng|very-secret", f"{caught.value.message} {caught.value.hint}")


def test_a_redirection_does_not_take_the_key_along(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.KEY_ENV, KEY)
    with serving(teacher, Behaviour(key=KEY)) as there:
        with (
            serving(teacher, Behaviour(moved_to=f"{there}/models")) as here,
            pytest.raises(MinitronError, match=r"HTTP 401.*provided: None"),
        ):
            connect(here, teacher, 97, 8)
        connect(there, teacher, 97, 8)  # the negative control


@pytest.mark.parametrize("secret", ["http://me:hidden@HOST/v1", "http://HOST/v1?key=hidden"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(
    secret: str, toy: Toy, text: Path, tmp_path: Path
) -> None:
    line = replace(options(toy("llama"), text, tmp_path / "out", Path("x"), top_k=8), teacher=(secret,))
    with pytest.raises(MinitronError, match="has a name, a password or a query in it") as caught:
        train(line)
    assert "hidden" not in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "out").exists()


def test_a_name_of_a_key_needs_a_server(toy: Toy, text: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="--teacher-key-env: no teacher is served"):
        train(options(toy("llama"), text, tmp_path / "out", teacher, teacher_key_env="OTHER"))


def test_an_address_without_the_api_is_named(teacher: Path) -> None:
    with (
        serving(teacher) as address,
        pytest.raises(MinitronError, match=r"/models does not have what is asked for \(HTTP 404\)") as caught,
    ):
        connect(address.removesuffix("/v1"), teacher, 97, 8)
    assert "ends in /v1" in (caught.value.hint or "")


class Clock(threading.Event):
    """Waits for nothing, and remembers how long it was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return False


def test_a_server_that_is_asked_too_much_says_how_long_to_wait(teacher: Path) -> None:
    behaviour, clock = Behaviour(fail=[429, 408, 503], retry_after="7"), Clock()
    body = {"model": "teacher", "prompt": [[1, 2]], "max_tokens": 1, "prompt_logprobs": 3}
    with serving(teacher, behaviour) as address:
        server = client.Server(address)
        assert "choices" in server.fetch("/completions", body, patience.Patience(5, 60.0), clock)
        assert clock.waits == [7.0, 0.002, 0.004]
        behaviour.fail, behaviour.retry_after = [429] * 9, "9999"
        with pytest.raises(MinitronError, match="does not answer after 3 tries: HTTP 429: try later") as caught:
            server.fetch("/completions", body, patience.Patience(3, 60.0), clock)
    assert clock.waits[3:] == [60.0, 60.0]
    assert "it limits how much it is asked" in (caught.value.hint or "")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


def test_a_server_is_asked_by_tls_where_its_certificate_is_trusted(
    teacher: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = Behaviour()
    with serving(teacher, behaviour, certificate) as address:
        assert address.startswith("https://")
        with pytest.raises(MinitronError, match=r"the certificate of .* is not trusted: self.signed") as caught:
            connect(address, teacher, 97, 8)
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
        assert not behaviour.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        assert connect(address, teacher, 97, 8).max_len == 128


def test_an_error_whose_text_is_cut_off_is_told_by_its_reason() -> None:
    error = HTTPError("http://h", 503, "Service Unavailable", Message(), None)
    with patch.object(error, "read", side_effect=IncompleteRead(b"{"), create=True):
        assert client._message(error, None) == "Service Unavailable"
