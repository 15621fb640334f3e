"""A transformer that runs from its checkpoint file, five of eight blocks never resident.

    python examples/stream_from_file.py

Uses the small model that blockswap ships; a real checkpoint works the same way.
"""

import torch

from blockswap import BlockSwapArgs, open_transformer
from blockswap.demo.weights import weights_path

transformer = open_transformer(weights_path(), BlockSwapArgs(blocks="0,2,4-6"), device="cpu")

dtype = transformer.patch_embedding.weight.dtype  # as the file stores it

with torch.inference_mode():
    for step in (900, 600, 300):
        transformer(
            hidden_states=torch.randn(1, transformer.config.in_channels, 9, 8, 8, dtype=dtype),
            timestep=torch.tensor([step]),
            encoder_hidden_states=torch.randn(1, 3, transformer.config.text_dim, dtype=dtype),
            return_dict=False,
        )

print(transformer.blockswap.report())
transformer.blockswap.close()
