"""diffusers' Wan classes in pieces: which are known, and what of a block makes it run whole."""

from collections.abc import Mapping
from typing import Any

import torch

from ..adapters.diffusers_seam import cut_classes, is_parallel
from ..adapters.families import WAN_LISTS
from .animate import run_face
from .block import BlockVisit, PieceFunctions, finished_piece, projected_piece
from .family import LAYERS, Compiler, Cut, Family, Loan, Small
from .model import run_model
from .visit import Piece, run, run_between

_INPUTS = {"hidden_states", "encoder_hidden_states", "temb", "rotary_emb"}
_OF_A_FACE = {"hidden_states", "encoder_hidden_states"}
_ROLES = ("model", "vace_model", "animate_model")
_HEADS, _HEAD_DIM, _TEXT, _IMAGE = 2, 12, 16, 20


class DiffusersFamily(Family):
    """diffusers' transformers of Wan, with VACE blocks or without."""

    lists = (*WAN_LISTS, "face_adapter")
    layers = LAYERS | {"FP32LayerNorm", "FeedForward", "WanAttention"}

    def is_block(self, block: torch.nn.Module) -> bool:
        classes = cut_classes()
        roles = ("block", "vace_block", "face_block")
        return type(block) in [kind for role in roles for kind in classes.get(role, ())]

    def tokens(self, given: dict[str, Any]) -> int | None:
        usual = given.keys() >= _INPUTS or given.keys() == _OF_A_FACE
        return given["hidden_states"].shape[1] if usual else None

    def run_block(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], loan: Loan
    ) -> Any:
        if given.keys() == _OF_A_FACE:
            text = given["encoder_hidden_states"]
            return run_face(block, given["hidden_states"], text, pieces)
        return _run(block, given, pieces, PieceFunctions(), loan)

    def compiles(self, block: torch.nn.Module) -> bool:
        return type(block) not in cut_classes().get("face_block", ())

    def run_compiled(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], compiler: Compiler
    ) -> Any:
        functions = PieceFunctions(compiler(projected_piece), compiler(finished_piece))
        return _run(block, given, pieces, functions, Loan())

    def why_part(self, name: str, module: Any) -> str | None:
        if not hasattr(module, "processor"):
            return None
        if type(module.processor) not in cut_classes()["processor"]:
            return f"the processor of its {name} is {type(module.processor).__name__}"
        if is_parallel(module.processor):
            return f"its {name} shares tokens out among devices"
        if getattr(module, "fused_projections", False):
            return f"the projections of its {name} are fused"
        return None

    def has_model(self, root: torch.nn.Module) -> bool:
        classes = cut_classes()
        return type(root) in [kind for role in _ROLES for kind in classes.get(role, ())]

    def model_tokens(self, root: Any, given: dict[str, Any]) -> int | None:
        """Not where a LoRA is scaled for one forward: the host does that around its own."""
        if given.get("attention_kwargs") is not None:
            return None
        sizes = zip(given["hidden_states"].shape[2:], root.config.patch_size, strict=True)
        tokens = 1
        for size, patch in sizes:
            tokens *= size // patch
        return tokens

    def run_model(self, root: Any, given: dict[str, Any], cut: Cut, loan: Loan) -> Any:
        return run_model(root, given, cut, loan)

    def small(self, root: Any) -> Small | None:
        """The same kind of model with as few and as narrow layers as will do; two steps."""
        if not self.has_model(root):
            return None
        config, kind = _small_config(root.config), type(root)
        # The blocks' own forwards: one that was replaced is tried anew.
        forwards = dict.fromkeys(type(block).forward for block in self.blocks(root).values())
        key = (kind, kind.forward, *forwards, *sorted(map(str, config.items())))
        return Small(key, lambda: kind(**config), lambda model: _two_steps(model, _inputs(config)))


DIFFUSERS = DiffusersFamily()


def _run(
    block: Any,
    given: dict[str, Any],
    pieces: tuple[Piece, ...],
    functions: PieceFunctions,
    loan: Loan,
) -> Any:
    hidden = given["hidden_states"]
    shared = given["encoder_hidden_states"], given["temb"], given["rotary_emb"]
    visit = BlockVisit(block, shared, pieces, functions)
    if not hasattr(block, "proj_out"):
        return run(visit, hidden, loan.take(hidden))
    control = given["control_hidden_states"]
    return run_between(visit, (block.proj_in, block.proj_out), (hidden, control), loan)


def _small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    small = {name: value for name, value in config.items() if not name.startswith("_")}
    small |= {"num_layers": 2, "num_attention_heads": _HEADS, "attention_head_dim": _HEAD_DIM}
    small |= {"ffn_dim": 32, "freq_dim": 16, "text_dim": _TEXT, "rope_max_seq_len": 64}
    small |= {"patch_size": (1, 2, 2)}
    if small.get("image_dim") is not None:
        small |= {"image_dim": _IMAGE, "added_kv_proj_dim": _HEADS * _HEAD_DIM}
    if small.get("pos_embed_seq_len") is not None:
        small |= {"pos_embed_seq_len": 8}
    if "vace_layers" in small:
        small |= {"vace_layers": [0, 1]}
    if "motion_encoder_size" in small:
        small |= {"motion_encoder_size": 8, "motion_encoder_channel_sizes": {"4": 6, "8": 6}}
        small |= {"motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8}
        small |= {"face_encoder_hidden_dim": 8, "inject_face_latents_blocks": 2}
    return small


def _two_steps(model: Any, given: Mapping[str, Any]) -> torch.Tensor:
    first = model(**given)[0]
    channels = given["hidden_states"].shape[1]
    again = torch.cat([first, first], dim=1).repeat(1, channels, 1, 1, 1)[:, :channels]
    return torch.cat([first, model(**{**given, "hidden_states": again})[0]])


def _inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """150 tokens; for a model with 48 channels a timestep for each."""
    frames, side = 6, 10
    tokens = frames * (side // 2) ** 2
    given: dict[str, Any] = {
        "hidden_states": torch.randn(1, config["in_channels"], frames, side, side),
        "timestep": torch.tensor([400]),
        "encoder_hidden_states": torch.randn(1, 512, _TEXT),
        "return_dict": False,
    }
    if config["out_channels"] == 48:
        given["timestep"] = torch.tensor([[0.0] * (tokens // 4) + [400.0] * (tokens - tokens // 4)])
    if config.get("image_dim") is not None:
        images = 1 if config.get("pos_embed_seq_len") is None else 2
        given["encoder_hidden_states_image"] = torch.randn(images, 4, _IMAGE)
    if "vace_layers" in config:
        given["control_hidden_states"] = torch.randn(
            1, config["vace_in_channels"], frames, side, side
        )
    if "motion_encoder_size" in config:
        channels = config["latent_channels"]
        given["pose_hidden_states"] = torch.randn(1, channels, frames - 1, side, side)
        size = config["motion_encoder_size"]
        given["face_pixel_values"] = torch.randn(1, 3, 4 * (frames - 1), size, size)
    return given
