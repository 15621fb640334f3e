"""What a VAE takes on the host: its convolutions copy what they are given, and that is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CLEAR = Path("/proc/self/clear_refs")
# The VAE of Wan 2.1 as it is, on a small clip.
PROGRAM = """
import json, re, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKLWan
from blockswap.predict.vae_chunks import record_vae
from blockswap.store.host_memory import return_freed_memory

def told(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+)", status)[1]) * 1024

dtype, task, size = getattr(torch, sys.argv[1]), sys.argv[2], (2, 12, 20)
torch.set_num_threads(1)
return_freed_memory()
def made(where):
    with torch.device(where):
        return AutoencoderKLWan().to(dtype).eval().requires_grad_(False)
vae = made("cpu")
def given(frames, height, width):
    if task == "decode":
        return torch.zeros(1, 16, frames, height, width, dtype=dtype)
    return torch.zeros(1, 3, 4 * (frames - 1) + 1, 8 * height, 8 * width, dtype=dtype)
call, small, whole = getattr(vae, task), given(2, 8, 8), given(*size)
with torch.no_grad():
    call(small, return_dict=False)  # what libraries take once
    Path("/proc/self/clear_refs").write_text("5")
    before = told("VmRSS")
    call(whole, return_dict=False)
found = {on_host: record_vae(made("meta"), task, size, tiled=False, on_host=on_host)
         for on_host in (False, True)}
print(json.dumps([told("VmHWM") - before, whole.nbytes,
                  *(cost.activation_bytes for cost in found.values())]))
"""


@pytest.mark.parametrize(("dtype", "task"), [("float32", "decode"), ("bfloat16", "encode")])
def test_the_peak_of_a_vae_on_the_host(dtype: str, task: str) -> None:
    if not CLEAR.exists():
        pytest.skip("no /proc to ask for a peak")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype, task], capture_output=True, text=True, check=True
    )
    measured, inputs, elsewhere, planned = json.loads(ran.stdout.splitlines()[-1])
    # The inputs were there before; heaps and threads of the libraries take some MB.
    assert measured + inputs - 10 * 2**20 <= planned <= 1.05 * (measured + inputs)
    assert planned > elsewhere
