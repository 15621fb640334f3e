"""A run that was killed anywhere goes on to the same frames; no finished step is done again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import digest_of, request_of, run_apart, told
from whole import by_us

# Where it ends, by which signal; then which steps and texts are still to be computed.
POINTS = [
    ("t2v", "read:UMT5Stack", "SIGKILL", 4, 2),
    ("t2v", "sample:1", "SIGKILL", 3, 0),
    ("t2v", "sample:3", "SIGINT", 1, 0),
    ("t2v", "read:WanDecoder3d", "SIGKILL", 0, 0),
    ("t2v", "write:5", "SIGKILL", 0, 0),
    ("two-experts", "sample:2", "SIGKILL", 2, 0),  # the second expert's turn comes
    ("files", "sample:2", "SIGKILL", 2, 0),  # experts in single files, a LoRA on each
    ("i2v", "sample:2", "SIGKILL", 2, 0),
]
# The others; `make every-point` runs them, too.
FURTHER = [
    ("t2v", "encode:1", "SIGINT", 4, 1),
    ("t2v", "sample:2", "SIGKILL", 2, 0),
    ("t2v", "sample:4", "SIGKILL", 0, 0),
    ("two-experts", "sample:1", "SIGINT", 3, 0),
    ("files", "sample:1", "SIGINT", 3, 0),
    ("files", "encode:1", "SIGKILL", 4, 1),
    ("v2v", "sample:1", "SIGINT", 2, 0),
]
if os.environ.get("BLOCKSWAP_EVERY_POINT"):
    POINTS += FURTHER


@pytest.fixture(scope="session")
def undisturbed(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """The digest of the frames of a run of that kind that nothing ended."""
    known: dict[str, str] = {}

    def digest(kind: str) -> str:
        if kind not in known:
            place = tmp_path_factory.mktemp(kind)
            request = request_of(folders(kind), kind, place)
            (frames,), _, _ = by_us(folders(kind), request, place / "clip.mp4", "cpu")
            known[kind] = digest_of(frames)
        return known[kind]

    return digest


@pytest.mark.parametrize(("kind", "point", "sent", "steps", "texts"), POINTS)
def test_resumed_after_it_was_ended(
    kind: str,
    point: str,
    sent: str,
    steps: int,
    texts: int,
    folders: Callable[[str], Path],
    undisturbed: Callable[[str], str],
    tmp_path: Path,
) -> None:
    expected, output = undisturbed(kind), tmp_path / "clip.mp4"
    ended = run_apart(folders(kind), output, kind, point, sent)
    assert ended == (-9 if sent == "SIGKILL" else 1)
    assert not output.exists()
    assert run_apart(folders(kind), output, kind, "", sent) == 0
    assert told(output) == (expected, steps, texts)
    assert output.exists()
    assert list(tmp_path.glob("*.resume*")) == []
