"""Run by ComfyUI's Python in its folder: writes a Wan VAE of its own class, with 8 channels for 96.

python make_vae.py --cpu --output-directory FOLDER
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPE = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}


def main() -> None:
    # ComfyUI reads its options from the command line while it is imported.
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.cli_args import args
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(0)
    vae = WanVAE(dim=8, temperal_downsample=[False, True, True], dropout=0.0, **SHAPE)
    tensors = {key: torch.randn(value.shape) * 0.1 for key, value in vae.state_dict().items()}
    save_file(tensors, Path(args.output_directory) / "wan_2.1_vae.safetensors")


if __name__ == "__main__":
    main()
