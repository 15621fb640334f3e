"""Forwards of Wan 1.3B checkpoints in a process of its own: prints peak RSS and a digest of each.

python run_forward.py streamed|loaded CHECKPOINT
python run_forward.py experts CHECKPOINT CHECKPOINT     # in turn, on one pool
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from blockswap import BlockSwapArgs, open_experts, open_transformer

ALL = BlockSwapArgs(blocks_to_swap=30, prefetch_blocks=1)


def streamed(path: str) -> torch.nn.Module:
    """All thirty blocks from the file, through two slots."""
    return open_transformer(path, ALL, device="cpu")


def loaded(path: str) -> torch.nn.Module:
    """The whole model in memory, read by the safetensors library, as `from_pretrained` has it."""
    from safetensors.torch import load_file

    from blockswap.adapters.skeleton import build_skeleton
    from blockswap.layout.checkpoint import open_checkpoint
    from blockswap.layout.geometry import infer_geometry, to_diffusers_key

    model = build_skeleton(infer_geometry(open_checkpoint(path)))
    weights = {to_diffusers_key(key): tensor for key, tensor in load_file(path).items()}
    kept = set(model._keep_in_fp32_modules)
    for key in [key for key in weights if not kept.isdisjoint(key.split("."))]:
        weights[key] = weights[key].float()
    model.load_state_dict(weights, assign=True)
    return model


def digest_of(model: torch.nn.Module) -> str:
    torch.manual_seed(0)
    with torch.inference_mode():
        (output,) = model(
            hidden_states=torch.randn(1, 16, 1, 8, 8).bfloat16(),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 8, 4096).bfloat16(),
            return_dict=False,
        )
    assert output.isfinite().all()
    return hashlib.sha256(output.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def main() -> None:
    how, *paths = sys.argv[1:]
    torch.set_num_threads(1)
    if how == "experts":
        high, low = open_experts(paths, ALL, device="cpu")
        high.blockswap.followed_by(low.blockswap, after=2)
        order = [high, high, low, low, high]
    else:
        order = [{"streamed": streamed, "loaded": loaded}[how](path) for path in paths]
    digests = [digest_of(model) for model in order]
    # Not ru_maxrss: across fork and exec that starts at the parent's own.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak_bytes": peak, "digests": digests}))


if __name__ == "__main__":
    main()
