"""The same frames are the same file, whatever lay in the memory of the process before."""

import os
import subprocess
import sys

import pytest

from blockswap.generate.video import ENCODERS

ENCODE = """
import hashlib, io, sys
import numpy as np
from blockswap.generate import video
drawn = np.random.default_rng(3)
tiles = np.kron(drawn.random((6, 6, 3)), np.ones((16, 16, 1)))
noise = [drawn.random((64, 64, 3)) * np.linspace(0, 0.2, 64)[:, None, None] for _ in range(9)]
frames = [np.clip(tiles[i : i + 64, i : i + 64] + n, 0, 1) * 255 for i, n in enumerate(noise)]
for encoder in sys.argv[1:]:
    video.ENCODERS, file = (encoder,), io.BytesIO()
    video.encode_video(file, [f.astype(np.uint8) for f in frames], width=64, height=64, fps=16)
    print(hashlib.md5(file.getvalue()).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc fills memory for this test")
def test_the_same_frames_are_the_same_file() -> None:
    from av.codec import codecs_available

    encoders = [name for name in ENCODERS if name in codecs_available]
    found = set()
    for filling in ("1", "170"):
        done = subprocess.run(
            [sys.executable, "-c", ENCODE, *encoders],
            env={**os.environ, "MALLOC_PERTURB_": filling},
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(done.stdout.split()) == len(encoders) > 0
        found.add(done.stdout)
    assert len(found) == 1
