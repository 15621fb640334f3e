"""A child in its cgroup, asked line by line, and a method that is given more memory if killed."""

import json
import select
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.disk_tier.how.folder import Folder
from benchmarks.disk_tier.how.methods import METHODS
from benchmarks.disk_tier.how.raw import READERS
from benchmarks.disk_tier.what import Clip, Sample, Track
from memory_group import MemoryGroup, memory_group, python

NO_LIMIT = 1 << 40
# A method that touches more memory than it has can read the same pages over and over for ever.
PATIENCE_SECONDS = 180.0
STEPS = (1.0, 1.3, 2.0, None)  # shares of the limit, one after the other, until a method survives


class Ended(Exception):
    """The child ended in the middle of what it was asked."""


class Child:
    """One process in a cgroup of its own, idle until it is asked for something."""

    def __init__(self, command: Sequence[str], limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self._stack = ExitStack()
        self.group: MemoryGroup = self._stack.enter_context(memory_group(limit_bytes or NO_LIMIT))
        self._process = subprocess.Popen(
            self.group.command(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._stack.callback(self._end)

    def ask(self, question: str | None = None) -> str:
        """Sends a line and waits for the answer; without one, for what it says by itself."""
        if question is not None:
            self.tell(question)
        return self.listen()

    def tell(self, question: str) -> None:
        """Sends a line and does not wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + "\n")
        except BrokenPipeError:
            raise Ended(self._last_words()) from None

    def listen(self) -> str:
        """The next line that the child says. A child that is silent for too long is ended."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_SECONDS)[0]:
            self._process.kill()
            raise Ended(f"ended after {PATIENCE_SECONDS:.0f} s without an answer")
        answer = self._process.stdout.readline()
        if not answer:
            raise Ended(self._last_words())
        return answer

    def close(self) -> None:
        self._stack.close()

    def _last_words(self) -> str:
        """Empty for a child that the limit killed."""
        code = self._process.wait(30)
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines() or [f"ended with {code}"]
        return "" if code in (-9, 137) else lines[-1][:200]

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


class Runner:
    """A method and its child, started anew with more memory whenever the limit kills it."""

    def __init__(self, name: str, folder: Folder, limit_bytes: int) -> None:
        self.name = name
        self._folder = folder
        steps = STEPS if METHODS[name].limited else (None,)
        self._limits = [None if step is None else int(limit_bytes * step) for step in steps]
        self.killed: list[int] = []
        self.error = ""
        self.child: Child | None = None

    def start(self, clips: Sequence[Clip]) -> None:
        """Opens the model and runs every clip once, under the least limit that allows it."""
        command = python(
            "-m", "benchmarks.disk_tier.how.child", "run", self.name, self._folder.root
        )
        while self._limits:
            child = Child(command, self._limits.pop(0))
            try:
                child.ask()
                for clip in clips:
                    self._forward(child, clip)
            except Ended as ended:
                child.close()
                if str(ended):
                    self.error = str(ended)
                    return
                if child.limit_bytes is not None:
                    self.killed.append(child.limit_bytes)
            else:
                self.child = child
                return

    def forward(self, clip: Clip) -> Sample | None:
        """One forward behind another, as steps of a generation are; None once the child is gone.

        Else it would pay for memory that others have cooled, or begin with what was read meanwhile.
        """
        if self.child is None:
            return None
        try:
            self._forward(self.child, clip)
            return self._forward(self.child, clip)
        except Ended as ended:
            self.error = str(ended) or "killed in the middle of the rounds"
            self.close()
            return None

    def beside(self, clip: Clip, raw: Child) -> float:
        """Seconds until a forward and a raw read, begun at once, have both ended.

        Nothing is between them: no streamer can have both sooner on this machine.
        """
        assert self.child is not None
        self.child.tell(_question(clip))
        raw.tell(str(max(READERS)))
        return max(_sample(self.child.listen()).seconds, float(raw.listen()))

    def track(self, samples: Sequence[Sample]) -> Track:
        """What is known of it after a row."""
        if self.child is None:
            return Track(killed=tuple(self.killed), error=self.error)
        kinds = self.child.group.by_kind
        return Track(
            samples=tuple(samples),
            limit_bytes=self.child.limit_bytes,
            killed=tuple(self.killed),
            anonymous_bytes=kinds["anonymous"] + kinds["shared"],
            cached_bytes=kinds["page_cache"],
            peak_bytes=self.child.group.peak_bytes,
        )

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    @staticmethod
    def _forward(child: Child, clip: Clip) -> Sample:
        return _sample(child.ask(_question(clip)))


def _question(clip: Clip) -> str:
    return json.dumps(asdict(clip))


def _sample(answer: str) -> Sample:
    told: dict[str, Any] = json.loads(answer)
    return Sample(**told)
