"""A teacher that a server runs: an OpenAI-compatible completions API that returns log-probabilities of the prompt.

    GET  URL/models                                                           -> data: [{id, max_model_len}]
    POST URL/completions {model, prompt: [[id, ...]], max_tokens: 1, prompt_logprobs: K}
        -> choices: [{index, prompt_logprobs: [null, {"id": {logprob}, ...}, ...]}]
    POST /tokenize       {model, prompt, add_special_tokens}                  -> tokens: [id, ...], where it is there

That is vLLM's; its `prompt_logprobs` are those of the model's own distribution, at temperature 1. Of each token come
the K likeliest ids, and the prompt's own. The answers become the records that a recording has.
"""

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch

from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.layout import TopKLayout
from minitron_cli.training.cached_logits.topk import TopK

IN_FLIGHT = 16  # requests that a process has at the server at a time
FIRST_WAIT = 0.5  # seconds before the second try, doubled before each further one


class Patience(NamedTuple):
    """How often a request is tried that fails in a way that may pass, and the seconds of silence that are a failure."""

    tries: int
    seconds: float


AT_WORK = Patience(7, 600.0)  # with the waits between the tries, half a minute where the server is gone
AT_START = Patience(3, 60.0)
_PROBE = "The 7 quick_foxes jumped; größer als 3,14? 東京\n\tdef f(x): return x"
_TINY = 1e-9  # the least probability of the rest: what is left of 1 after float32 sums is not less


class _Refused(Exception):
    """The server understood, and will not: a status of 4xx with its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Served:
    """The model that the server at `url` calls `model`, asked for the `top_k` likeliest of the student's `vocab` ids;
    it reads at most `max_len` tokens, where it says so."""

    url: str
    model: str
    top_k: int
    vocab: int
    max_len: int | None = None

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    def layout(self, seq_len: int) -> TopKLayout:
        """How what it says of a row lies in memory, as on disk."""
        return TopKLayout(seq_len - 1, self.top_k, self.vocab)

    def check_length(self, seq_len: int) -> None:
        """Refuse rows that leave no room for the one token that a completion must have."""
        if self.max_len is not None and seq_len >= self.max_len:
            raise MinitronError(
                f"{self} reads {self.max_len} tokens, and a row has {seq_len} and one that is generated",
                f"give --seq-len {self.max_len - 1} or less, or serve it with a longer context",
            )

    def record(self, ids: np.ndarray, starts: np.ndarray, stopped: threading.Event | None = None) -> bytes:
        """What it says of one row of ids (seq_len,), read anew from each of `starts`, the first of which is 0."""
        size = len(ids)
        found = TopK(
            torch.arange(self.top_k).repeat(size, 1), torch.zeros(size, self.top_k), torch.zeros(size)
        )  # where a text begins nothing is asked, and the loss does not look
        bounds = [*starts.tolist(), size]
        pieces = [(a, b) for a, b in pairwise(bounds) if b - a > 1]
        for (a, b), top in zip(pieces, self.ask([ids[a:b].tolist() for a, b in pieces], stopped), strict=True):
            for whole, part in ((found.ids, top.ids), (found.log_probs, top.log_probs), (found.tail, top.tail)):
                whole[a : b - 1] = part
        (record,) = self.layout(size).pack(found.at(torch.arange(size - 1)), 1)
        return record

    def ask(
        self, prompts: Sequence[list[int]], stopped: threading.Event | None = None, patience: Patience = AT_WORK
    ) -> list[TopK]:
        """The top k of every token but the first of each prompt, in one request."""
        if not prompts:
            return []
        body = {"model": self.model, "prompt": list(prompts), "max_tokens": 1, "prompt_logprobs": self.top_k}
        try:
            answer = _fetch(f"{self.url}/completions", body, patience, stopped)
        except _Refused as error:
            raise self._explained(error) from error
        given = answer.get("choices") if isinstance(answer, dict) else None
        choices = [choice for choice in given if isinstance(choice, dict)] if isinstance(given, list) else []
        if len(choices) != len(prompts):
            raise self._not_understood(f"{len(prompts)} choices were asked for")
        in_order = sorted(choices, key=lambda choice: choice.get("index", 0))
        return [self._top(choice, prompt) for choice, prompt in zip(in_order, prompts)]

    def _top(self, choice: dict[str, Any], prompt: list[int]) -> TopK:
        given = choice.get("prompt_logprobs")
        if not isinstance(given, list) or len(given) != len(prompt):
            raise self._not_understood("an entry of prompt_logprobs for each token was asked for")
        if choice.get("prompt_token_ids") not in (None, prompt):
            raise self.other_vocabulary("it read other ids than were sent")
        ids, log_probs = self._likeliest(given[1:])
        if (largest := int(ids.max())) >= self.vocab or int(ids.min()) < 0:
            raise self.other_vocabulary(f"it names id {largest}, the student has {self.vocab}")
        if np.isnan(log_probs).any():
            raise self._not_understood("a log-probability is not a number")
        rest = np.maximum(-np.expm1(np.logaddexp.reduce(log_probs, axis=-1)), _TINY)
        return TopK(torch.from_numpy(ids), torch.from_numpy(log_probs).float(), torch.from_numpy(np.log(rest)).float())

    def _likeliest(self, entries: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """ids and log-probabilities (token, top_k), largest first, of each token's {"id": {"logprob": x}, ...}."""
        try:
            counts = np.array([len(entry) for entry in entries])
            ids = np.array([int(name) for entry in entries for name in entry])
            values = np.array([float(each["logprob"]) for entry in entries for each in entry.values()])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._not_understood('an entry of prompt_logprobs is not {"id": {"logprob": x}, ...}') from error
        if counts.min() < self.top_k:
            raise MinitronError(
                f"{self} gives {counts.min()} log-probabilities a token, {self.top_k} were asked for",
                f"start it with --max-logprobs {self.top_k} (vLLM), or give --top-k {max(1, counts.min())}",
            )
        there = np.arange(counts.max()) < counts[:, None]
        whole = np.zeros(there.shape, np.int64), np.full(there.shape, -np.inf)
        whole[0][there], whole[1][there] = ids, values
        order = np.argsort(-whole[1], axis=1, kind="stable")[:, : self.top_k]
        return np.take_along_axis(whole[0], order, 1), np.take_along_axis(whole[1], order, 1)

    def _explained(self, error: _Refused) -> MinitronError:
        """What to do about a refused request."""
        text = str(error)
        if "logprobs" in text:
            hint = f"start it with --max-logprobs {self.top_k} (vLLM), or give a smaller --top-k"
        elif "vocab" in text:
            return self.other_vocabulary(text)
        else:
            hint = "the server's log says more"
        return MinitronError(f"{self} refuses a request (HTTP {error.code}): {text}", hint)

    def other_vocabulary(self, why: str) -> MinitronError:
        """The error of a teacher whose ids are not the student's."""
        return MinitronError(
            f"{self} has another vocabulary than the student: {why}", "serve a teacher of the student's own family"
        )

    def _not_understood(self, why: str) -> MinitronError:
        return MinitronError(
            f"{self} gives an answer that is not understood: {why}",
            "serve the teacher by an API that has prompt_logprobs, such as vLLM's",
        )


def connect(spec: str, tokenizer: Path, vocab: int, top_k: int) -> Served:
    """The teacher at `http://HOST:PORT/v1[#NAME]`, asked once to see that it has the ids of the student's tokenizer."""
    url, _, name = spec.partition("#")
    url = url.rstrip("/")
    _check_address(url)
    if not top_k < vocab:
        raise MinitronError(f"--top-k {top_k} does not fit {vocab} ids", f"give 1 to {vocab - 1}")
    try:
        answer = _fetch(f"{url}/models", None, AT_START)
        models = {model["id"]: model.get("max_model_len") for model in answer["data"]}
    except (_Refused, KeyError, TypeError) as error:
        raise MinitronError(
            f"{url}/models does not list models: {error}", "give the address that ends in /v1: http://HOST:PORT/v1"
        ) from error
    name = name or (next(iter(models)) if len(models) == 1 else "")
    if name not in models:
        raise MinitronError(
            f"{url} serves {', '.join(models) or 'no model'}" + (f", not {name}" if name else ""),
            f"name one: --teacher {url}#NAME",
        )
    served = Served(url, name, top_k, vocab, models[name])
    _check_ids(served, load_tokenizer(tokenizer))
    return served


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        found = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        found = False
    if not found:
        raise MinitronError(f"--teacher {url} is not an address", "write it as http://HOST:PORT/v1")


def _check_ids(served: Served, tokenizer: TextTokenizer) -> None:
    """Equal ids for a text, where the server tokenises; and it must know the largest id and give what is asked for."""
    ids = tokenizer.backend.encode(_PROBE, add_special_tokens=False).ids
    body = {"model": served.model, "prompt": _PROBE, "add_special_tokens": False}
    try:
        answer = _fetch(f"{served.url.removesuffix('/v1')}/tokenize", body, AT_START)
    except _Refused:
        answer = {}  # not every server has it
    theirs = answer.get("tokens") if isinstance(answer, dict) else None
    if theirs is not None and theirs != ids:
        raise served.other_vocabulary("a text has other ids there")
    largest = min(tokenizer.vocab_size, served.vocab) - 1
    served.ask([[*ids[: (served.max_len or len(ids) + 3) - 3], largest, largest]], patience=AT_START)


def _fetch(url: str, body: Any, patience: Patience, stopped: threading.Event | None = None) -> Any:
    """The JSON that a server answers with. What may pass is tried again; a refusal raises _Refused."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for number in range(patience.tries):
        if number and (stopped or threading.Event()).wait(FIRST_WAIT * 2 ** (number - 1)):
            break
        try:
            with urllib.request.urlopen(request, timeout=patience.seconds) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            problem = _message(error)
            if error.code < 500 and error.code != 429:
                raise _Refused(error.code, problem) from error
            problem = f"HTTP {error.code}: {problem}"
        except json.JSONDecodeError:
            problem = "what it sends is cut off, or not JSON"
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    raise MinitronError(
        f"{url} does not answer after {patience.tries} tries: {problem}",
        "is the server up, and this its address? e.g. `vllm serve MODEL --max-logprobs 128`",
    )


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says about an error, in one line."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)
        text = found["error"]["message"] if isinstance(found.get("error"), dict) else found["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return " ".join(str(text).split())[:300] or str(error.reason)
