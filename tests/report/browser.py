"""A real headless browser, driven over the WebDriver protocol with nothing but the standard library."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-dev-shm-usage"),
)
_START_SECONDS = 30


class Browser:
    """One session with one page open."""

    def __init__(self, base: str) -> None:
        self._base = base

    def open(self, page: Path, width: int, dark: bool) -> None:
        """Open a local page as a reader with this screen width and colour scheme would see it."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """The value that a piece of JavaScript returns in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What the page has complained about since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def screenshot(self, file: Path) -> None:
        """The whole page, not only the window."""
        found = self._cdp("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(found["data"]))

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        return _request(method, self._base + path, body)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A session of Debian's (or anyone's) chromium; the test is skipped where it is not installed."""
    driver = shutil.which("chromedriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not program:
        pytest.skip("no chromium and chromedriver here: the page is not opened in a real browser")
    port = _free_port()
    log = profile / "chromedriver.log"
    with subprocess.Popen([driver, f"--port={port}", f"--log-path={log}"], stdout=subprocess.DEVNULL) as process:
        session = None
        try:
            session = _session(f"http://127.0.0.1:{port}", program, profile)
            yield Browser(session)
        finally:
            if session:
                _request("DELETE", session, None)
            process.terminate()


def _session(base: str, program: str, profile: Path) -> str:
    options = {"binary": program, "args": [*_FLAGS, f"--user-data-dir={profile / 'profile'}"]}
    capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            found = _request("POST", f"{base}/session", {"capabilities": {"alwaysMatch": capabilities}})
            return f"{base}/session/{found['sessionId']}"
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _request(method: str, url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    # A proxy of the surroundings has no business here.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read())["value"]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
