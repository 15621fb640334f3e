"""diffusers' Wan2.2 Animate in pieces: pose and face outside the blocks, and the face's own blocks.

A face block's queries look at the few tokens of their own frame, so its pieces are whole frames.
"""

from typing import Any

import torch

from ..adapters.diffusers_seam import attend_with, attention_backend
from ..plan.inputs.pieces import LEAST_TOKENS
from .visit import Piece


def posed_patches(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """Patches of the latents, the pose's added behind the first frame: `[batch, tokens, dim]`."""
    hidden = model.patch_embedding(given["hidden_states"])
    pose = model.pose_patch_embedding(given["pose_hidden_states"])
    hidden[:, :, 1:] = hidden[:, :, 1:] + pose
    patches: torch.Tensor = hidden.flatten(2).transpose(1, 2).contiguous()
    return patches


def motion_of(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """The face's tokens of each latent frame, `[batch, frames, tokens, dim]`; the first is zero."""
    pixels = given["face_pixel_values"]
    batch, channels, frames, height, width = pixels.shape
    faces = pixels.permute(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
    at_once = given.get("motion_encode_batch_size") or model.config.motion_encoder_batch_size
    seen = torch.cat([model.motion_encoder(some) for some in torch.split(faces, at_once)])
    motion = model.face_encoder(seen.view(batch, frames, -1))
    return torch.cat([torch.zeros_like(motion[:, :1]), motion], dim=1)


def run_face(
    block: Any, hidden: torch.Tensor, motion: torch.Tensor, pieces: tuple[Piece, ...]
) -> torch.Tensor:
    """What all tokens see of the face of their frame, in pieces of whole frames."""
    frames, per_frame = motion.shape[1], hidden.shape[1] // motion.shape[1]
    flat = block.pre_norm_kv(motion).flatten(1, 2)
    split = (*motion.shape[:3], block.heads, -1)
    keys = block.norm_k(block.to_k(flat).view(split)), block.to_v(flat).view(split)
    out = torch.empty_like(hidden)
    for sample in range(hidden.shape[0]):
        for first, last in _of_frames(frames, per_frame, pieces):
            where = slice(sample, sample + 1), slice(first * per_frame, last * per_frame)
            key, value = (part[sample, first:last] for part in keys)
            out[where] = _seen(block, hidden[where], (key, value))
    return out


def _seen(
    block: Any, hidden: torch.Tensor, keys: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Of one sample's frames: each frame is a sample of the attention."""
    query = block.norm_q(block.to_q(block.pre_norm_q(hidden)).unflatten(2, (block.heads, -1)))
    query = query.unflatten(1, (keys[0].shape[0], -1)).flatten(0, 1)
    seen = attend_with(query, *keys, attention_backend(block.processor))
    projected: torch.Tensor = block.to_out(seen.flatten(2, 3).type_as(query).flatten(0, 1)[None])
    return projected


def _of_frames(frames: int, per_frame: int, pieces: tuple[Piece, ...]) -> list[Piece]:
    """Frames from one to another, with as many tokens as a piece has, and never fewer than 64."""
    most = max(stop - start for start, stop in pieces)
    each = max(1, most // per_frame, -(-LEAST_TOKENS // per_frame))
    starts = list(range(0, frames, each))
    if len(starts) > 1 and (frames - starts[-1]) * per_frame < LEAST_TOKENS:
        starts.pop()
    return list(zip(starts, [*starts[1:], frames], strict=True))
