"""The real wrapper pack in this process: its modules, tiny models through its own loader node.

Nothing of the pack is here: it is found by the environment variable BLOCKSWAP_WRAPPER.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import wrapper_packs

HOME = os.environ.get("BLOCKSWAP_WRAPPER") or None
NAME = "ComfyUI-WanVideoWrapper"
DIM, FFN, BLOCKS = 192, 96, 30  # its loader takes every width that it does not know for 1.3B


def part(name: str) -> Any:
    """One of its modules."""
    wrapper_packs.load(NAME, Path(str(HOME)))
    return importlib.import_module(f"{NAME}.{name}")


def weights(*, vace: bool = False, seed: int = 7) -> dict[str, torch.Tensor]:
    """A checkpoint with small random weights, named as the pack's own class names them."""
    from accelerate import init_empty_weights

    cls = part("wanvideo.modules.model").WanModel
    more = {"vace_layers": list(range(0, BLOCKS, 2)), "vace_in_dim": 96} if vace else {}
    with init_empty_weights():
        skeleton = cls(
            dim=DIM, in_features=DIM, out_features=DIM, ffn_dim=FFN, ffn2_dim=FFN, in_dim=16,
            out_dim=16, num_heads=12, num_layers=BLOCKS, model_type="t2v", dtype=torch.float32,
            attention_mode="sdpa", **more,
        )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for key, tensor in skeleton.state_dict().items():
        shape = tuple(tensor.shape)
        if shape == (DIM, 1):  # its class builds these narrower than its checkpoints have them
            shape = (DIM, DIM)
        value = torch.randn(shape, generator=draw) * 0.05
        made[key] = value + 1 if "norm" in key and key.endswith("weight") else value
    return made


def fp8_scaled(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, value in given.items():
        made[key] = value
        if "blocks." in key and key.endswith(".weight") and value.ndim == 2:
            scale = value.abs().max() / 448
            made[key] = (value / scale).to(torch.float8_e4m3fn)
            made[key.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return made


def lora(given: dict[str, torch.Tensor], seed: int = 11) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for key, value in given.items():
        if key.endswith(("self_attn.q.weight", "cross_attn.v.weight", "ffn.0.weight")):
            name = "diffusion_model." + key.removesuffix(".weight")
            made[f"{name}.lora_B.weight"] = torch.randn(value.shape[0], 4, generator=draw) * 0.1
            made[f"{name}.lora_A.weight"] = torch.randn(4, value.shape[1], generator=draw) * 0.1
    return made


@contextmanager
def found(path: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    import folder_paths

    with patch.context() as inside:
        inside.setattr(folder_paths, "get_full_path_or_raise", lambda *_: str(path))
        yield


def model(path: Path, patch: pytest.MonkeyPatch, **options: Any) -> Any:
    """What its loader node gives for a file."""
    asked = dict(base_precision="bf16", quantization="disabled", load_device="offload_device")
    loader = part("nodes_model_loading").WanVideoModelLoader()
    with found(path, patch):
        return loader.loadmodel(path.name, **{**asked, **options})[0]


def sample(patcher: Any, *, steps: int = 2, **options: Any) -> torch.Tensor:
    """The latents of its sampler node, in two steps with guidance."""
    (embeds,) = part("nodes").WanVideoEmptyEmbeds().process(9, 64, 64)
    asked = dict(
        shift=5.0, steps=steps, cfg=3.0, seed=5, scheduler="euler", riflex_freq_index=0,
        rope_function="comfy", text_embeds=_text(),
    )  # fmt: skip
    sampler = part("nodes_sampler").WanVideoSampler()
    given = {**embeds, **options.pop("embeds", {})}
    (result,) = sampler.process(patcher, given, **{**asked, **options})[:1]
    made: torch.Tensor = result["samples"] if "samples" in result else result["video"]
    return made


def _text() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    return {
        "prompt_embeds": [torch.randn(12, 4096, generator=draw)],
        "negative_prompt_embeds": [torch.randn(12, 4096, generator=draw)],
    }


def sample_diffusion_forcing(patcher: Any) -> torch.Tensor:
    """The latents of its sampler for diffusion forcing, in two steps with guidance."""
    (embeds,) = part("nodes").WanVideoEmptyEmbeds().process(9, 64, 64)
    sampler = part("skyreels.nodes").WanVideoDiffusionForcingSampler()
    asked = dict(shift=5.0, fps=24.0, steps=2, addnoise_condition=0, cfg=3.0, seed=5,
                 scheduler="euler", rope_function="comfy")  # fmt: skip
    device = patcher.load_device  # it leaves the text where its encoder has put it
    text = {key: [value.to(device) for value in values] for key, values in _text().items()}
    result: torch.Tensor = sampler.process(patcher, text, embeds, **asked)[0]["samples"]
    return result


class SmallVae:
    """In place of a VAE, which the loop of talking videos runs between two windows."""

    dtype = torch.float32

    def to(self, _: Any) -> "SmallVae":
        return self

    def encode(self, videos: Any, **_: Any) -> torch.Tensor:
        first = videos[0][None] if isinstance(videos, list) else videos
        grey = first.mean(1, keepdim=True)[:, :, ::4, ::8, ::8]
        return grey.repeat(1, 16, 1, 1, 1)

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        pixels = latents[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        return pixels.repeat_interleave(4, 2)[:, :, 3:].clamp(-1, 1)


def sample_windows(patcher: Any, patch: pytest.MonkeyPatch) -> torch.Tensor:
    """Frames of its loop for talking videos: two windows, the model offloaded between them.

    A model that was not made for it has no ear: what it would hear is left out of its forward.
    """
    cls = part("wanvideo.modules.model").WanModel
    forward = cls.forward
    deaf = dict(multitalk_audio=None, ref_target_masks=None, y=None)
    with patch.context() as inside:
        inside.setattr(
            cls, "forward", lambda self, *args, **kwargs: forward(self, *args, **{**kwargs, **deaf})
        )
        more = {
            "multitalk_sampling": True, "multitalk_mode": "multitalk", "frame_window_size": 9,
            "motion_frame": 1, "target_h": 64, "target_w": 64, "force_offload": True,
            "vae": SmallVae(),
        }  # fmt: skip
        talk = {"audio_features": [torch.zeros(16, 12, 768)], "ref_target_masks": None}
        return sample(patcher, steps=1, cfg=1.0, embeds=more, multitalk_embeds=talk)


def vace_embeds(device: torch.device) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(9)
    return {
        "vace_context": [torch.randn(96, 3, 8, 8, generator=draw).to(device)],
        "vace_scale": 1.0,
        "vace_seq_len": 48,
    }


def asked_lora(path: Path, *, merged: bool) -> list[dict[str, Any]]:
    """As its LoRA node makes it."""
    return [
        {
            "path": str(path), "strength": 0.8, "name": "tiny", "blocks": {}, "layer_filter": [],
            "merge_loras": merged, "low_mem_load": False,
        }
    ]  # fmt: skip


def write_gguf(path: Path, given: dict[str, torch.Tensor]) -> Path:
    """A GGUF file in which the linears of the blocks are Q8_0."""
    import gguf

    writer = gguf.GGUFWriter(path, "wan")
    for key, value in given.items():
        array = value.numpy()
        if "blocks." in key and key.endswith(".weight") and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
