"""A teacher that a server runs: an OpenAI-compatible completions API that returns log-probabilities of the prompt.

    GET  URL/models                                                           -> data: [{id, max_model_len}]
    POST URL/completions {model, prompt: [[id, ...]], max_tokens: 1, prompt_logprobs: K}
        -> choices: [{index, prompt_logprobs: [null, {"id": {logprob}, ...}, ...]}]
    POST /tokenize       {model, prompt, add_special_tokens}                  -> tokens: [id, ...], where it is there

That is vLLM's; its `prompt_logprobs` are those of the model's own distribution, at temperature 1. Of each token come
the K likeliest ids, and the prompt's own. The answers become the records that a recording has.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.client import Refused, Server
from minitron_cli.training.cached_logits.layout import TopKLayout
from minitron_cli.training.cached_logits.topk import TopK
from minitron_cli.training.patience import AT_START, AT_WORK, Patience

IN_FLIGHT = 16  # requests that a process has at the server at a time
_PROBE = "The 7 quick_foxes jumped; größer als 3,14? 東京\n\tdef f(x): return x"
_TINY = 1e-9  # the least probability of the rest: what is left of 1 after float32 sums is not less


@dataclass(frozen=True, slots=True)
class Served:
    """The model that a `server` calls `model`, asked for the `top_k` likeliest of the student's `vocab` ids.

    `max_len` is its context in tokens, where the server says so.
    """

    server: Server
    model: str
    top_k: int
    vocab: int
    max_len: int | None = None

    def __str__(self) -> str:
        return f"{self.model} at {self.server}"

    def layout(self, seq_len: int) -> TopKLayout:
        """The layout of a row's record."""
        return TopKLayout(seq_len - 1, self.top_k, self.vocab)

    def check_length(self, seq_len: int) -> None:
        """Refuse rows that leave no room for the one token that a completion must have."""
        if self.max_len is not None and seq_len >= self.max_len:
            raise MinitronError(
                f"{self} reads {self.max_len} tokens, and a row has {seq_len} and one that is generated",
                f"give --seq-len {self.max_len - 1} or less, or serve it with a longer context",
            )

    def record(self, ids: np.ndarray, starts: np.ndarray, stopped: threading.Event | None = None) -> bytes:
        """The record of one row of ids (seq_len,); a prompt begins at each of `starts`, the first of which is 0."""
        size = len(ids)
        found = TopK(
            torch.arange(self.top_k).repeat(size, 1), torch.zeros(size, self.top_k), torch.zeros(size)
        )  # the first token of a text has no prediction, and the loss gives it no weight
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
            answer = self.server.fetch("/completions", body, patience, stopped)
        except Refused as error:
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

    def _explained(self, error: Refused) -> MinitronError:
        """What to do about a refused request."""
        found = self.server.explained(error, str(self))
        if error.code in (400, 422) and "logprobs" in found.message:
            hint = f"start it with --max-logprobs {self.top_k} (vLLM), or give a smaller --top-k"
            return MinitronError(found.message, hint)
        return self.other_vocabulary(str(error)) if error.code in (400, 422) and "vocab" in str(error) else found

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


def connect(spec: str, tokenizer: Path, vocab: int, top_k: int, key_env: str | None = None) -> Served:
    """The teacher at `http://HOST:PORT/v1[#NAME]`, asked once to see that it has the ids of the student's tokenizer.

    The environment variable `key_env` holds its key (see `client`).
    """
    url, _, name = spec.partition("#")
    server = Server(url.rstrip("/"), key_env)
    server.check()
    if not top_k < vocab:
        raise MinitronError(f"--top-k {top_k} does not fit {vocab} ids", f"give 1 to {vocab - 1}")
    try:
        answer = server.fetch("/models", None, AT_START)
        models = {model["id"]: model.get("max_model_len") for model in answer["data"]}
    except Refused as error:
        raise server.explained(error, f"{server}/models") from error
    except (KeyError, TypeError) as error:
        raise MinitronError(
            f"{server}/models does not list models: {error}", "give the address that ends in /v1: http://HOST:PORT/v1"
        ) from error
    name = name or (next(iter(models)) if len(models) == 1 else "")
    if name not in models:
        raise MinitronError(
            f"{server} serves {', '.join(models) or 'no model'}" + (f", not {name}" if name else ""),
            f"name one: --teacher {server}#NAME",
        )
    served = Served(server, name, top_k, vocab, models[name])
    _check_ids(served, load_tokenizer(tokenizer))
    return served


def _check_ids(served: Served, tokenizer: TextTokenizer) -> None:
    """Equal ids for a text, where the server tokenises; and it must know the largest id and give what is asked for."""
    ids = tokenizer.backend.encode(_PROBE, add_special_tokens=False).ids
    body = {"model": served.model, "prompt": _PROBE, "add_special_tokens": False}
    try:
        answer = served.server.fetch("/tokenize", body, AT_START, base=served.server.url.removesuffix("/v1"))
    except Refused:
        answer = {}  # not every server has it
    theirs = answer.get("tokens") if isinstance(answer, dict) else None
    if theirs is not None and theirs != ids:
        raise served.other_vocabulary("a text has other ids there")
    largest = min(tokenizer.vocab_size, served.vocab) - 1
    served.ask([[*ids[: (served.max_len or len(ids) + 3) - 3], largest, largest]], patience=AT_START)
