"""The forward of ComfyUI's VACE model in pieces: whose hidden states are held by nobody else.

The host's own forward keeps the patches of the clip until its end and embeds the control video
before the first layer, so two states more are alive beside a layer's keys and values. Here the
control video is embedded behind that layer, and blocks write into the states that they are lent.
Everything is called as the host calls it, through the model's own parts.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...pieces import Loan
from ..seams import host_wan

_STRETCHES = 8  # of frames, and of tokens: what is made in fp32 or scaled is so much smaller


def vace_tokens(root: Any, given: Mapping[str, Any]) -> int | None:
    """Tokens of a forward; None where others replace its blocks or read their input and output."""
    if any(host_wan.between_blocks(given.get("transformer_options") or {})):
        return None
    sizes = zip(given["x"].shape[2:], root.patch_size, strict=True)
    tokens: int = math.prod(size // patch for size, patch in sizes)
    return tokens


def run_vace(root: Any, given: Mapping[str, Any], loan: Loan) -> torch.Tensor:
    """What the host's `forward_orig` returns for these arguments, by name."""
    options = given.get("transformer_options") or {}
    patches, grid = _patches(root.patch_embedding, given["x"])
    hidden = patches.contiguous()
    del patches
    time, shared = _shared(root, given, hidden, options)
    told = host_wan.tells_blocks(root)
    if told:
        options |= {"grid_sizes": grid, "total_blocks": len(root.blocks), "block_type": "double"}
    control: list[torch.Tensor] = []
    for number, block in enumerate(root.blocks):
        if told:
            options["block_index"] = number
        place = root.vace_layers_mapping.get(number)
        before = hidden if place is not None and not control else None
        hidden = block(hidden if before is not None else loan.lend(hidden), **shared)
        if place is None:
            continue
        if before is not None:
            control = _control(root, given["vace_context"])
        hidden = _hinted(
            root.vace_blocks[place], (hidden, before), control, given["vace_strength"], shared, loan
        )
        del before
    control.clear()
    unpatched: torch.Tensor = root.unpatchify(root.head(hidden, time), grid)
    return unpatched


def _patches(embedding: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
    """`[batch, tokens, dim]` of latents, embedded in fp32 as the host does it, and their grid.

    A patch is embedded by itself, so some frames are after others. Channel by channel in memory,
    as the host's are, but no view of another tensor, which would keep its memory.
    """
    depth = embedding.kernel_size[0]
    made: torch.Tensor | None = None
    grid, done = latents.shape[2:], 0
    each = depth * -(-latents.shape[2] // depth // _STRETCHES)
    for frames in torch.split(latents, each, dim=2):
        some = embedding(frames.float()).to(latents.dtype)
        if made is None:
            grid = torch.Size((latents.shape[2] // depth, *some.shape[3:]))
            size = some.shape[0], math.prod(grid), some.shape[1]
            places = size[1] * size[2], 1, size[1]
            made = torch.empty_strided(size, places, dtype=some.dtype, device=some.device)
        tokens = some.flatten(2).transpose(1, 2)
        made[:, done : done + tokens.shape[1]] = tokens
        done += tokens.shape[1]
        del some, tokens
    assert made is not None, "there is a frame"
    return made, grid


def _shared(
    root: Any, given: Mapping[str, Any], hidden: torch.Tensor, options: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The embedded time, and what every block is given beside its states."""
    steps = host_wan.sinusoids(root.freq_dim, given["t"]).to(dtype=hidden.dtype)
    time = root.time_embedding(steps)
    context, image = root.text_embedding(given["context"]), given.get("clip_fea")
    if image is not None and root.img_emb is not None:
        context = torch.concat([root.img_emb(image), context], dim=1)
    return time, {
        "e": root.time_projection(time).unflatten(1, (6, root.dim)),
        "freqs": given.get("freqs"),
        "context": context,
        "context_img_len": None if image is None else image.shape[-2],
        "transformer_options": options,
    }


def _control(root: Any, videos: torch.Tensor) -> list[torch.Tensor]:
    """The states of each control video, as the host's embedding leaves them."""
    return [_patches(root.vace_patch_embedding, video)[0] for video in videos.unbind(1)]


def _hinted(
    block: Any,
    states: tuple[torch.Tensor, torch.Tensor | None],
    control: list[torch.Tensor],
    strengths: Any,
    shared: Mapping[str, Any],
    loan: Loan,
) -> torch.Tensor:
    """Hidden states with the scaled hint of each control video added.

    `states`: after the layer, and before the first one, which the first VACE block alone reads.
    """
    hidden, before = states
    for number, own in enumerate(control):
        last = number == len(control) - 1
        control[number] = own.new_empty(0)  # the list holds it no longer
        lent = loan.lend(own, *([before] if before is not None and last else []))
        hint, control[number] = block(lent, x=hidden if before is None else before, **shared)
        del own, lent
        for some, more in zip(hidden.chunk(_STRETCHES, 1), hint.chunk(_STRETCHES, 1), strict=True):
            some.add_(more * strengths[number])
        del hint
    return hidden
