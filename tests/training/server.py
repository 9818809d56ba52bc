"""A server for tests that speaks vLLM's protocol for a model in memory, run by transformers, and can misbehave."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Body = dict[str, Any]


@dataclass
class Behaviour:
    """What the server does otherwise: `spoil` turns its answers to completions into others, `fail` names the status
    codes of the next requests, `cut` how many answers break off in the middle. A `key` must come with every request:
    the server repeats what came instead, as some do."""

    max_logprobs: int = 128
    tokenizes: bool = True
    max_len: int = 128
    names: tuple[str, ...] = ("teacher",)
    shift: int = 0  # added to the ids that it tokenises to
    fail: list[int] = field(default_factory=list)
    cut: int = 0
    key: str | None = None
    moved_to: str | None = None
    retry_after: str | None = None
    spoil: Callable[[Body], Any] = lambda body: body
    asked: list[Body] = field(default_factory=list)
    most: int = 0  # requests at a time
    at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)


@contextmanager
def serving(model: Path, behaviour: Behaviour | None = None, certificate: Path | None = None) -> Iterator[str]:
    """The address of a server for a model directory, as long as the block lasts; by TLS with a `certificate`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(model, behaviour or Behaviour()))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _handler(path: Path, behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    def completions(body: Body) -> tuple[int, Any]:
        k, prompts = body["prompt_logprobs"], body["prompt"]
        if k > behaviour.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {behaviour.max_logprobs}"
            return 400, {"error": {"message": message, "code": 400}}
        if max(map(max, prompts)) >= model.config.vocab_size:
            return 400, {"error": {"message": f"Token id {max(map(max, prompts))} is out of vocabulary", "code": 400}}
        if max(map(len, prompts)) + body["max_tokens"] > behaviour.max_len:
            return 400, {"error": {"message": "the context is too short", "code": 400}}
        found = [{"index": i, "prompt_logprobs": log_probs(prompt, k)} for i, prompt in enumerate(prompts)]
        return 200, behaviour.spoil({"choices": found[::-1]})

    @torch.no_grad()
    def log_probs(prompt: list[int], k: int) -> list[Any]:
        rows = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        found: list[Any] = [None]
        for row, following in zip(rows, prompt[1:]):
            ids = list(dict.fromkeys([following, *row.topk(k).indices.tolist()]))
            found.append({str(i): {"logprob": row[i].item(), "rank": int((row > row[i]).sum()) + 1} for i in ids})
        return found

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _admitted(self) -> bool:
            given = self.headers.get("Authorization")
            if behaviour.key is None or given == f"Bearer {behaviour.key}":
                return True
            code = 401 if given is None else 403
            self._send(code, {"error": {"message": f"wrong API key provided: {given}", "code": code}})
            return False

        def do_GET(self) -> None:
            if behaviour.moved_to:
                self.send_response(302)
                self.send_header("Location", behaviour.moved_to)
                return self.end_headers()
            if not self._admitted():
                return None
            names = [{"id": name, "max_model_len": behaviour.max_len} for name in behaviour.names]
            if self.path != "/v1/models":
                return self._send(404, {"detail": "Not Found"})
            return self._send(200, {"data": names})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._admitted():
                return None
            if self.path == "/tokenize" and behaviour.tokenizes:
                ids = tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
                return self._send(200, {"tokens": [i + behaviour.shift for i in ids]})
            if self.path != "/v1/completions":
                return self._send(404, {"detail": "Not Found"})
            with behaviour.lock:
                behaviour.asked.append(body)
                behaviour.at_once += 1
                behaviour.most = max(behaviour.most, behaviour.at_once)
                code = behaviour.fail.pop(0) if behaviour.fail else 0
            try:
                self._send(*((code, {"message": "try later"}) if code else completions(body)), may_cut=True)
            finally:
                with behaviour.lock:
                    behaviour.at_once -= 1

        def _send(self, code: int, body: Any, may_cut: bool = False) -> None:
            data = json.dumps(body).encode()
            if may_cut and code == 200 and behaviour.cut:
                behaviour.cut -= 1
                data = data[: len(data) // 2]
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            if code == 429 and behaviour.retry_after:
                self.send_header("Retry-After", behaviour.retry_after)
            self.end_headers()
            self.wfile.write(data)

    return Handler
