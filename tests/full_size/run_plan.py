"""`blockswap plan` of a 14B model at 720p in a process of its own: prints peak RSS at the end."""

import sys
from pathlib import Path

from typer.testing import CliRunner

from blockswap.cli.app import app

CLIP = ["--size", "1280x720", "--frames", "81", "--vae-tiled"]

if __name__ == "__main__":
    found = CliRunner().invoke(
        app, ["plan", "--model", "wan2.1-t2v-14b", *CLIP, "--gpu", "RTX 4090", "--vram", "16GiB"]
    )
    assert found.exit_code == 0, found.output
    print("torch" in sys.modules)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
