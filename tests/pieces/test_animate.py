"""diffusers' Animate in pieces: the whole's output, and less memory."""

from typing import Any

import pytest
import torch
from clips import run

from blockswap.pieces import Pieces, why_never
from blockswap.predict import predict_module

diffusers = pytest.importorskip("diffusers")


def animate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model = diffusers.WanAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=12,
            latent_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=96,
            num_layers=4,
            image_dim=40,
            added_kv_proj_dim=48,
            motion_encoder_channel_sizes={"4": 6, "8": 6},
            motion_encoder_size=8,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            inject_face_latents_blocks=2,
        )
    return model.to(dtype).eval()


def given(
    dtype: torch.dtype = torch.float32, *, batch: int = 1, side: int = 12, device: str = "cpu"
) -> dict[str, Any]:
    """Six latent frames."""
    draw = torch.Generator().manual_seed(1)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=draw).to(dtype).to(device)

    return {
        "hidden_states": made(12, 6, side, side),
        "timestep": torch.full((batch,), 400, device=device),
        "encoder_hidden_states": made(512, 32),
        "encoder_hidden_states_image": made(257, 40),
        "pose_hidden_states": made(4, 5, side, side),
        "face_pixel_values": made(3, 20, 8, 8),
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("dtype", "batch", "side"),
    [(torch.float32, 1, 12), (torch.bfloat16, 2, 12), (torch.bfloat16, 1, 14)],
)
def test_output_is_the_wholes(dtype: torch.dtype, batch: int, side: int) -> None:
    model, inputs = animate(dtype), given(dtype, batch=batch, side=side)
    assert why_never(model) is None
    whole = run(model, inputs)
    kept = inputs["hidden_states"].clone()
    for tokens in (64, 100):
        said: list[str] = []
        pieces = Pieces(model, tokens, said.append)
        assert torch.equal(run(model, inputs), whole)
        assert torch.equal(run(model, inputs), whole), "the first step left something behind"
        pieces.remove()
        assert not said
    assert torch.equal(inputs["hidden_states"], kept)


def test_less_memory_at_the_same_flops() -> None:
    model = animate(torch.bfloat16, "meta")
    inputs = given(torch.bfloat16, side=48, device="meta")
    whole = predict_module(model, kwargs=inputs)
    pieces = Pieces(model, 256, print)
    cut = predict_module(model, kwargs=inputs)
    pieces.remove()
    assert cut.flops_by_unit == whole.flops_by_unit
    assert cut.rest_flops == whole.rest_flops
    assert cut.activation_bytes < whole.activation_bytes * 0.6
