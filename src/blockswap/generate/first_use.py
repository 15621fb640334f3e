"""What libraries take once, taken before a run is planned: so it is measured and not guessed.

A library's pages count as a process's memory once they were touched, and how many come with each is
the page cache's affair: right after an install it holds a library in large folios, and the same run
maps twice as much of it (Linux 6.18, torch 2.13: 49 MB more in one state, 100 in the other).
"""

import io

import torch
from torch.nn import functional

from .video import encode_video

# What the process may still take for libraries then: kernels for other sizes, threads, garbage.
# Measured over whole runs as 9 MB in the one state, 16 in the other.
FIRST_USE_BYTES = 16 * 2**20


def take_first_use() -> None:
    """Runs once what each run does: layers, attention, convolutions, random numbers, an encoder."""
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            _layers(dtype)
            _convolutions(dtype)
        torch.randn(4, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        angles = torch.arange(4, dtype=torch.float64, device="cpu")
        torch.view_as_complex(torch.stack([angles.cos(), angles.sin()], dim=-1)).mul(2)
        torch.linalg.solve(torch.eye(2, device="cpu"), torch.ones(2, 1, device="cpu"))
    frame = torch.zeros(16, 16, 3, dtype=torch.uint8, device="cpu").numpy()
    encode_video(io.BytesIO(), [frame], width=16, height=16, fps=16)


def _layers(dtype: torch.dtype) -> None:
    weight = torch.ones(64, 64, dtype=dtype, device="cpu")
    made = functional.linear(weight[None], weight, weight[0])
    heads = made.view(1, 64, 2, 32).transpose(1, 2)
    functional.scaled_dot_product_attention(heads, heads, heads)
    functional.layer_norm(made.float(), (64,))
    functional.rms_norm(made, (64,))
    functional.gelu(made, approximate="tanh")
    functional.softmax(made, -1)
    torch.cat([made.transpose(1, 2).contiguous(), made.float().mul(2).type_as(made)])


def _convolutions(dtype: torch.dtype) -> None:
    frames = torch.ones(1, 4, 5, 16, 16, dtype=dtype, device="cpu")
    kernel = torch.ones(8, 4, 3, 3, 3, dtype=dtype, device="cpu")
    padded = functional.pad(frames, (1, 1, 1, 1, 2, 0))
    made = functional.silu(functional.normalize(functional.conv3d(padded, kernel), dim=1))
    flat = functional.conv2d(made[:, :, 0], kernel[:, :1, 0].expand(8, 8, 3, 3), padding=1)
    functional.interpolate(flat.float(), scale_factor=(2.0, 2.0), mode="nearest-exact")
