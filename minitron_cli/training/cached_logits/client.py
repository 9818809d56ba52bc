"""JSON over HTTP: a failure that may pass is tried again, any other is reported at once.

The key of a server comes from the environment, is read there for every request and is kept nowhere: neither options nor
messages hold it, and no redirection takes it to another host.
"""

import http.client
import json
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from minitron_cli.errors import MinitronError
from minitron_cli.training.patience import Patience, Tries

KEY_ENV = "MINITRON_TEACHER_KEY"
_PASSES = (408, 429)  # of 4xx: a request that took too long, and one too many
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Refused(Exception):
    """The server refuses a request: a status below 500, and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Server:
    """A server at `url`, and the environment variable that holds its key, if that is not KEY_ENV."""

    url: str
    key_env: str | None = None

    def __str__(self) -> str:
        return self.url

    def check(self) -> None:
        """Refuse what is not an address, an address with a secret in it (it is written down), and a missing key."""
        try:
            parts = urlsplit(self.url)
            found = parts.hostname is not None and (parts.port is None or parts.port > 0)
        except ValueError:
            found = False
        if found and (parts.username is not None or parts.query):
            raise MinitronError(
                "the address of --teacher has a name, a password or a query in it, which would be written down",
                f"give the address alone, and a key in the environment: {KEY_ENV}, or --teacher-key-env NAME",
            )
        if not found:
            raise MinitronError(f"--teacher {self.url} is not an address", "write it as http://HOST:PORT/v1")
        self.key()

    def key(self) -> str | None:
        """What the environment holds, None where it has no key."""
        if self.key_env is not None and not _NAME.fullmatch(self.key_env):
            # It may be the key itself: not repeated.
            raise MinitronError(
                "--teacher-key-env takes the name of an environment variable, not a key", f"e.g. {KEY_ENV}"
            )
        key = os.environ.get(self.key_env or KEY_ENV, "").strip()
        if self.key_env is not None and not key:
            raise MinitronError(
                "--teacher-key-env: there is no such environment variable, or it is empty",
                "export it where the run is started, on every node",
            )
        if not (key.isascii() and key.isprintable()):
            raise MinitronError(
                f"{self.key_env or KEY_ENV} holds what no key can: characters that no header has", "look at its value"
            )
        return key or None

    def fetch(
        self, path: str, body: Any, patience: Patience, stopped: threading.Event | None = None, base: str | None = None
    ) -> Any:
        """The JSON that `path` (below `base`, or else the url) answers `body` with, None: by GET. Raises Refused."""
        url, key = (base or self.url) + path, self.key()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        if key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        hint = "is the server up, and this its address? e.g. `vllm serve MODEL --max-logprobs 128`"
        tries, problem = Tries(patience.tries, stopped), ""
        for _ in tries:
            try:
                with urllib.request.urlopen(request, timeout=patience.seconds) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                problem = _message(error, key)
                if error.code < 500 and error.code not in _PASSES:
                    raise Refused(error.code, problem) from error
                if error.code == 429:
                    tries.least = _retry_after(error, patience.seconds)
                    hint = "it limits how much it is asked: raise its limit, or train with fewer processes"
                problem = f"HTTP {error.code}: {problem}"
            except ValueError:
                problem = "what it sends is cut off, or not JSON"
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise _not_trusted(url, reason) from error
                problem = str(reason) or type(error).__name__
        raise MinitronError(f"{url} does not answer after {patience.tries} tries: {problem}", hint)

    def explained(self, error: Refused, who: str = "") -> MinitronError:
        """What to do about a refusal, whatever was asked for."""
        who, name = who or self.url, self.key_env or KEY_ENV
        if error.code in (401, 403):
            hint = f"put its key into the environment: {KEY_ENV}, or --teacher-key-env NAME"
            if self.key() is not None:
                hint = f"is the key in {name} one of this server, and may it use this model?"
            return MinitronError(f"{who} refuses access (HTTP {error.code}): {error}", hint)
        if 300 <= error.code < 400:
            return MinitronError(f"{who} has moved (HTTP {error.code}): {error}", "give the address that it has now")
        if error.code == 404:
            hint = "give the address that ends in /v1, and #NAME of a model that it serves: http://HOST:PORT/v1#NAME"
            return MinitronError(f"{who} does not have what is asked for (HTTP 404): {error}", hint)
        return MinitronError(f"{who} refuses a request (HTTP {error.code}): {error}", "the server's log says more")


def _message(error: urllib.error.HTTPError, key: str | None) -> str:
    """What a server says about an error, in one line and without the key, which some repeat."""
    text = ""
    try:
        text = error.read().decode(errors="replace")
        found = json.loads(text)
        text = found["error"]["message"] if isinstance(found.get("error"), dict) else found["message"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        pass  # a body that is cut off, or of another form
    text = " ".join(str(text).split())
    return (text.replace(key, "***") if key else text)[:300] or str(error.reason)


def _retry_after(error: urllib.error.HTTPError, most: float) -> float:
    """The seconds that a server asks to wait, `most` at the most; 0 where it does not say, or names a date."""
    asked = (error.headers.get("Retry-After") or "").strip()
    return min(float(asked), most) if asked.isdecimal() else 0.0


def _not_trusted(url: str, error: ssl.SSLCertVerificationError) -> MinitronError:
    return MinitronError(
        f"the certificate of {url} is not trusted: {error.verify_message}",
        "if it is one of your own, name the certificate that signed it: SSL_CERT_FILE=ca.pem",
    )
