"""Block swap for a model that is loaded already, inside a `with`.

    python examples/swap_a_loaded_model.py

On an accelerator the blocks stream from pinned RAM; on the CPU they are used where they lie.
"""

import torch
from diffusers import WanTransformer3DModel

from blockswap import swap_blocks

device = torch.accelerator.current_accelerator() or torch.device("cpu")
transformer = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=32, ffn_dim=128, num_layers=8, text_dim=64
).eval()

with swap_blocks(transformer, {"blocks_to_swap": 6}, device=device) as swap, torch.no_grad():
    transformer(
        hidden_states=torch.randn(1, 16, 3, 8, 8, device=device),
        timestep=torch.tensor([500], device=device),
        encoder_hidden_states=torch.randn(1, 5, 64, device=device),
        return_dict=False,
    )
    print(swap.report())
