"""A headless Chromium over its DevTools protocol: what the browser tests click, read and draw.

Chromium is found on the PATH. `.ci/run` installs it from the system's packages; elsewhere a missing
one is a reason to skip.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers; the page is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
START_SECONDS = 60
ANSWER_SECONDS = 60
SHOWN_SECONDS = 30


class BrowserTrouble(Exception):
    """The browser, or a script in the page, did not do what it was asked; the text says what."""


def find() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Coordinates are pixels of the page from its upper left corner."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its answer. A page that asks whether to leave is left."""
        number = self._send(method, parameters)
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "Page.javascriptDialogOpening":
                self._send("Page.handleJavaScriptDialog", {"accept": True})
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserTrouble(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        return number

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression; a promise is awaited."""
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            raise BrowserTrouble(f"{script}\n{done['exceptionDetails']}")
        return done["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = SHOWN_SECONDS) -> Any:
        """The expression's value as soon as it is true. Raises BrowserTrouble."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.1)
        shown = self.evaluate("document.body ? document.body.innerText : ''")
        raise BrowserTrouble(f"never true in {seconds} s: {script}\nthe page says: {shown[:2000]}")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def text(self) -> str:
        """What a person can read on the page (not what is drawn on a canvas)."""
        return str(self.evaluate("document.body.innerText"))

    def move(self, x: float, y: float) -> None:
        self._mouse("mouseMoved", x, y, button="none")

    def click(self, x: float, y: float, *, times: int = 1) -> None:
        self.move(x, y)
        for count in range(1, times + 1):
            self._mouse("mousePressed", x, y, button="left", clickCount=count)
            self._mouse("mouseReleased", x, y, button="left", clickCount=count)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, code: int, ctrl: bool = False) -> None:
        """A key by its DOM name and its Windows key code."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        common["modifiers"] = 2 if ctrl else 0
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, *, clip: dict[str, float] | None = None) -> None:
        """A PNG of the window, or of `clip` (x, y, width, height)."""
        extra = {"clip": {**clip, "scale": 1}} if clip else {}
        shot = self.call("Page.captureScreenshot", format="png", **extra)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


@contextmanager
def browsing(program: str, folder: Path, size: tuple[int, int]) -> Iterator[Page]:
    """One window of `size` pixels with its profile in `folder`, closed with all its processes."""
    profile = folder / "profile"
    window = f"--window-size={size[0]},{size[1]}"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *SWITCHES, f"--user-data-dir={profile}", window, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LANGUAGE": "en", "LANG": "C.UTF-8"},
        )
    try:
        socket = create_connection(_address_of_the_tab(profile), timeout=ANSWER_SECONDS)
        page = Page(socket)
        page.call("Page.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=False,
        )
        yield page
        socket.close()
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address_of_the_tab(profile: Path) -> str:
    port_file = profile / "DevToolsActivePort"
    _until(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1)
    port = port_file.read_text().split("\n")[0]

    def tabs() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            return [tab for tab in json.loads(answer.read()) if tab["type"] == "page"]

    _until(tabs)
    return str(tabs()[0]["webSocketDebuggerUrl"])


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise BrowserTrouble(f"Chromium did not come up in {START_SECONDS} s")
        time.sleep(0.05)
