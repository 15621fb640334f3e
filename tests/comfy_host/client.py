"""Talks to a running ComfyUI over HTTP: prompts, their outcome, and the latents they saved."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from .server import Server, ServerDied

Prompt = Mapping[str, Mapping[str, Any]]

RUN_SECONDS = 240


class Rejected(Exception):
    """ComfyUI did not take the prompt (HTTP 400); `errors` is by node id."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, ensure_ascii=False))
        self.errors: dict[str, Any] = answer.get("node_errors") or {}

    def text_of(self, node: str) -> str:
        """What the page shows on this node."""
        return " ".join(
            f"{error['message']}: {error['details']}" for error in self.errors[node]["errors"]
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one prompt came to: `status` is success or error, `messages` the events of the run."""

    status: str
    messages: tuple[tuple[str, dict[str, Any]], ...]
    outputs: dict[str, Any]

    def event(self, name: str) -> dict[str, Any] | None:
        """The data of the first event of this name; None if there was none."""
        return next((data for kind, data in self.messages if kind == name), None)


class Client:
    """One caller of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.server.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def get_text(self, path: str) -> str:
        with urllib.request.urlopen(self.server.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.server.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: Prompt) -> str:
        """Asks for one run and gives its id. Raises Rejected."""
        try:
            return str(self.post("/prompt", {"prompt": prompt})["prompt_id"])
        except urllib.error.HTTPError as refused:
            if refused.code != 400:
                raise
            raise Rejected(json.loads(refused.read())) from refused

    def wait(self, prompt_id: str) -> Outcome:
        """The outcome of a queued prompt. Raises ServerDied when it never comes."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status"):
                messages = tuple((kind, data) for kind, data in entry["status"]["messages"])
                return Outcome(entry["status"]["status_str"], messages, entry["outputs"])
            if self.server.process.poll() is not None:
                raise ServerDied(self.server.log[-3000:])
            time.sleep(0.05)
        raise ServerDied(f"no outcome in {RUN_SECONDS} s:\n{self.server.log[-3000:]}")

    def run(self, prompt: Prompt) -> Outcome:
        return self.wait(self.queue(prompt))

    def run_well(self, prompt: Prompt) -> Outcome:
        """Runs it and insists on success."""
        outcome = self.run(prompt)
        assert outcome.status == "success", json.dumps(outcome.messages)[-4000:]
        return outcome

    def latent(self, outcome: Outcome, node: str) -> torch.Tensor:
        """What SaveLatent node `node` saved, as the bytes that are in its file."""
        (saved,) = outcome.outputs[node]["latents"]
        path = self.server.root / "output" / saved["subfolder"] / saved["filename"]
        return load_file(path)["latent_tensor"]

    def view(self, picture: Mapping[str, str]) -> bytes:
        """The bytes of an image that a node showed."""
        query = urllib.parse.urlencode(picture)
        with urllib.request.urlopen(f"{self.server.url}/view?{query}", timeout=30) as answer:
            return bytes(answer.read())

    def free(self) -> None:
        """What the page's *unload models and cache* button asks for; done when this returns.

        ComfyUI only notes the wish, and heeds it when its worker comes by: a prompt queued at once
        may run before that. So one that does nothing goes first, and the worker comes by after it.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        nothing = {"class_type": "PreviewAny", "inputs": {"source": str(time.monotonic_ns())}}
        self.run_well({"nothing": nothing})

    def interrupt(self) -> None:
        self.post("/interrupt", {})
