"""What is foreseen of a streamed text encoder is what the engine's own plan takes."""

import pytest
import torch
from tiny_encoders import ENCODERS

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.predict import text_encoder
from blockswap.predict.published_beside import _streamed_bytes

ALL = BlockSwapArgs(blocks_to_swap=999)
TOKENS = 12


def taken(model: torch.nn.Module, device: torch.device) -> tuple[int, int]:
    """Bytes of weights and slots on the device, and how far alignment may carry them apart."""
    tensors = len(list(model.parameters())) + len(list(model.buffers()))
    with swap_blocks(model, ALL, device=device) as swap:
        return swap.plan.device_bytes, 512 * (tensors + 3)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
def test_the_classes_of_transformers(name: str, sim_device: torch.device) -> None:
    model = ENCODERS[name].build().to(torch.bfloat16).requires_grad_(False)
    stored = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    foreseen = _streamed_bytes(model, stored, small=False, tokens=TOKENS)
    found, apart = taken(model, sim_device)
    rows = TOKENS * 32 * 2  # fetched when a forward asks for them
    assert abs(foreseen - rows - found) <= apart
    assert foreseen < sum(stored.values())


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
def test_wans_own_by_its_formula(sim_device: torch.device) -> None:
    import transformers as hf

    sizes = dict(vocab_size=5000, d_model=256, d_kv=64, d_ff=640, num_layers=5, num_heads=4)
    config = hf.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
    model = hf.UMT5EncoderModel(config).to(torch.bfloat16).requires_grad_(False).eval()
    geometry = text_encoder.TextEncoderGeometry(
        vocabulary=5000, dim=256, attention_dim=256, ffn_dim=640, heads=4, layers=5, buckets=32
    )
    cost = text_encoder.predict_text_encoder(tokens=TOKENS, geometry=geometry)
    found, apart = taken(model, sim_device)
    assert abs(cost.streamed_bytes - TOKENS * 256 * 2 - found) <= apart
    assert cost.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
