"""Where the stand-in computes and where it keeps what it swaps, as ComfyUI says when it starts."""

import comfy.model_management as management

device = management.get_torch_device()
offload_device = management.unet_offload_device()
