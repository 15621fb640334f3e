"""The files of one model: a checkpoint as diffusers lays it out, and what peers want prepared."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.disk_tier.what import DIM, FFN, HEADS, Model
from blockswap.synth import synth


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the files of one model lie."""

    root: Path

    @property
    def transformer(self) -> Path:
        return self.root / "transformer"

    @property
    def checkpoint(self) -> Path:
        return self.transformer / "diffusion_pytorch_model.safetensors"

    def of(self, method: str) -> Path:
        """What is prepared for a method, and nobody else's."""
        return self.root / method.replace(" ", "-")

    @property
    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def _widen_what_is_kept(checkpoint: Path) -> None:
    """Puts in fp32 what diffusers' loader keeps so outside the blocks: all methods compute alike.

    Some load what is stored as it is, and ours as `from_pretrained` does.
    """
    from diffusers import WanTransformer3DModel
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    tensors = {
        name: tensor
        if name.startswith("blocks.") or kept.isdisjoint(name.split("."))
        else tensor.float()
        for name, tensor in load_file(checkpoint).items()
    }
    fresh = checkpoint.with_suffix(".new")
    save_file(tensors, fresh, metadata=metadata)
    fresh.replace(checkpoint)


def write_model(model: Model, root: Path) -> Folder:
    """A checkpoint in diffusers' names, with the configuration that belongs to it."""
    folder = Folder(root)
    folder.transformer.mkdir(parents=True)
    synth(model.geometry, folder.checkpoint, dtype=model.dtype, naming="diffusers")
    _widen_what_is_kept(folder.checkpoint)
    (folder.transformer / "config.json").write_text(json.dumps(config(model)))
    (root / "model.json").write_text(json.dumps(asdict(model)))
    return folder


def read_model(root: Path) -> Model:
    return Model(**json.loads((root / "model.json").read_text()))


def config(model: Model) -> dict[str, object]:
    """diffusers' own configuration of this geometry."""
    return {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": HEADS,
        "attention_head_dim": DIM // HEADS,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": FFN,
        "num_layers": model.blocks,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }
