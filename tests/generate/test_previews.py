"""Pictures of a clip while it is sampled: when they come, what they show, and that they go."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from whole import by_us, request_for

from blockswap.errors import ArgsError, OutputError
from blockswap.generate.preview import preview_path
from blockswap.generate.run import prepare


@pytest.mark.parametrize("kind", ["t2v", "vace"])
def test_they_come_every_few_steps(
    kind: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "clip.mp4"
    seen: dict[int, np.ndarray] = {}

    def progress(phase: str, done: int, _total: int) -> None:
        path = preview_path(output)
        if phase == "sample" and path.exists():
            seen[done] = np.asarray(Image.open(path))

    asked = request_for(kind, tmp_path, preview_every=2)
    (frames,), _, plan = by_us(folders(kind), asked, output, "cpu", progress=progress)
    assert sorted(seen) == [2, 3, 4], "none before the second step"
    assert np.array_equal(seen[2], seen[3]), "none after the third"
    assert not np.array_equal(seen[3], seen[4])
    # After the last step it is the first frame of the clip.
    assert np.array_equal(seen[4], (frames[0] * 255).astype(np.uint8))
    assert not preview_path(output).exists()
    _, without = prepare(folders(kind), request_for(kind, tmp_path), output, device="cpu")
    own, bare = (
        {phase.name: phase.host_bytes - found.phases[-1].host_bytes for phase in found.phases}
        for found in (plan, without)
    )
    assert own["sample"] > bare["sample"]


def test_they_cost_no_picture_of_others(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "clip.preview.png").write_text("mine")
    asked = request_for("t2v", tmp_path, preview_every=1)
    with pytest.raises(OutputError, match="lost"):
        prepare(folders("t2v"), asked, tmp_path / "clip.mp4", device="cpu")
    assert (tmp_path / "clip.preview.png").read_text() == "mine"
    with pytest.raises(ArgsError, match="give steps, or 0"):
        request_for("t2v", tmp_path, preview_every=-1)
