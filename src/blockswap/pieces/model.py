"""The forward of diffusers' Wan models in pieces, whose holders of hidden states are known.

Everything is called as in the host's own forward, through the model's own parts. What differs: the
hidden states are handed from block to block and held by nobody else, so a block may write into
them; a timestep for each token is projected once for each that differs; VACE hints are made just
after their layer, not all of them first; and the output head, in fp32, runs piece by piece.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ..adapters.diffusers_seam import model_output
from .animate import motion_of, posed_patches
from .family import Cut, Loan
from .modulation import Modulation, TokenTimes, distinct_timesteps
from .visit import Piece


def run_model(model: Any, given: dict[str, Any], cut: Cut, loan: Loan) -> Any:
    """The model's output for its forward's arguments, by name."""
    latents = given["hidden_states"]
    embedded = Embedded(model, given)
    if hasattr(model, "face_adapter"):
        hidden = _animated_layers(model, given, embedded, loan)
    elif hasattr(model, "vace_blocks"):
        hidden = _patches(model.patch_embedding, latents)
        hidden = _vace_layers(model, given, embedded, hidden, loan)
    else:
        hidden = _patches(model.patch_embedding, latents)
        for block in model.blocks:
            hidden = block(loan.lend(hidden), embedded.text, embedded.times, embedded.rotary)
    out = _unpatched(model, _head(model, embedded, hidden, cut(hidden.shape[1])), latents.shape)
    return model_output(out) if given.get("return_dict", True) else (out,)


class Embedded:
    """What the blocks of one forward are given beside hidden states: times, text, rotary tables."""

    def __init__(self, model: Any, given: dict[str, Any]) -> None:
        timestep, text = given["timestep"], given["encoder_hidden_states"]
        image = given.get("encoder_hidden_states_image")
        self.rotary = model.rope(given["hidden_states"])
        self._rows_of: torch.Tensor | None = None
        rows = None
        if timestep.dim() == 2:
            rows, few = timestep.shape[1], distinct_timesteps(timestep)
            if few is not None:
                values, self._rows_of = few
                rows, timestep = values.numel(), values
            timestep = timestep.flatten()
        embed = model.condition_embedder
        self._time, times, text, image = embed(timestep, text, image, timestep_seq_len=rows)
        times = times.unflatten(-1, (6, -1))
        self.times = times if self._rows_of is None else TokenTimes(times, self._rows_of)
        self.text = text if image is None else torch.concat([image, text], dim=1)

    def head(self, table: torch.Tensor) -> Modulation:
        """Shift and scale of the output head."""
        times = self._time.unsqueeze(-2).expand(*self._time.shape[:-1], 2, -1)
        given = times if self._rows_of is None else TokenTimes(times, self._rows_of)
        return Modulation(table.to(self._time.device), given, widen=False)


def _patches(embedding: Any, latents: torch.Tensor) -> torch.Tensor:
    """`[batch, channels, frames, height, width]` -> `[batch, tokens, dim]`, contiguous."""
    patches: torch.Tensor = embedding(latents).flatten(2).transpose(1, 2).contiguous()
    return patches


def _vace_layers(
    model: Any, given: dict[str, Any], embedded: Embedded, hidden: torch.Tensor, loan: Loan
) -> torch.Tensor:
    """All layers of a VACE model. A layer's block runs before the VACE block that it is hinted by:

    that one does not read its result, and so neither hint nor control states wait for it. The first
    VACE block reads the hidden states of before all layers, which the first layer leaves as they
    are. (While a layer runs: its input and output or the control states, and its keys and values.)
    """
    scales = _scales(
        model, given["control_hidden_states"], given.get("control_hidden_states_scale")
    )
    vace_blocks = iter(model.vace_blocks)
    shared = embedded.text, embedded.times, embedded.rotary
    control: torch.Tensor | None = None
    for layer, block in enumerate(model.blocks):
        vace = next(vace_blocks) if layer in model.config.vace_layers else None
        before = hidden
        first = vace is not None and control is None
        hidden = block(hidden if first else loan.lend(hidden), *shared)
        if vace is None:
            continue
        if control is None:
            embedding, latents = model.vace_patch_embedding, given["control_hidden_states"]
            control = _padded(_patches(embedding, latents), hidden.shape[1])
        text, times, rotary = shared
        lent = loan.lend(control, *([before] if first else []))
        hint, control = vace(before, text, lent, times, rotary)
        hidden = _hinted(hidden, hint, next(scales))
        del hint, lent, before
    return hidden


def _animated_layers(
    model: Any, given: dict[str, Any], embedded: Embedded, loan: Loan
) -> torch.Tensor:
    """All layers of Animate; what a face block has seen is added behind every few of them."""
    hidden, motion = posed_patches(model, given), motion_of(model, given)
    every = model.config.inject_face_latents_blocks
    for layer, block in enumerate(model.blocks):
        hidden = block(loan.lend(hidden), embedded.text, embedded.times, embedded.rotary)
        if layer % every == 0:
            seen = model.face_adapter[layer // every](hidden, motion)
            hidden.add_(seen)
            del seen
    return hidden


def _hinted(hidden: torch.Tensor, hint: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adds a scaled hint, sample by sample and in eight stretches, into the hidden states."""
    for own, added in zip(hidden, hint, strict=True):
        for some, more in zip(own.chunk(8), added.chunk(8), strict=True):
            some.copy_(some + more.to(some.device) * scale)
    return hidden


def _scales(model: Any, control: torch.Tensor, given: Any) -> Iterator[torch.Tensor]:
    layers = len(model.config.vace_layers)
    scales = torch.unbind(control.new_ones(layers) if given is None else given)
    if len(scales) != layers:
        raise ValueError(
            f"Length of `control_hidden_states_scale` {len(scales)} should be equal to {layers}."
        )
    return iter(scales)


def _padded(control: torch.Tensor, tokens: int) -> torch.Tensor:
    missing = tokens - control.shape[1]
    if not missing:
        return control
    padding = control.new_zeros(control.shape[0], missing, control.shape[2])
    return torch.cat([control, padding], dim=1)


def _head(
    model: Any, embedded: Embedded, hidden: torch.Tensor, pieces: tuple[Piece, ...]
) -> torch.Tensor:
    """Norm and projection: `[batch, tokens, dim]` -> `[batch, tokens, channels of a patch]`."""
    modulation = embedded.head(model.scale_shift_table)
    out: torch.Tensor | None = None
    for sample in range(hidden.shape[0]):
        for piece in pieces:
            where = slice(sample, sample + 1), slice(*piece)
            vectors = modulation.of(sample, piece)
            shift, scale = (vectors.vector(number).to(hidden.device) for number in (0, 1))
            normed = model.norm_out(hidden[where].float()) * (1 + scale) + shift
            some = model.proj_out(normed.type_as(hidden))
            if out is None:
                out = some.new_empty((*hidden.shape[:2], some.shape[2]))
            out[where] = some
    assert out is not None, "there is a piece"
    return out


def _unpatched(model: Any, patches: Any, size: torch.Size) -> torch.Tensor:
    """Patches put together as latents of the input's size."""
    frames, height, width = model.config.patch_size
    grid = size[2] // frames, size[3] // height, size[4] // width
    parts = patches.reshape(size[0], *grid, frames, height, width, -1)
    parts = parts.permute(0, 7, 1, 4, 2, 5, 3, 6)
    latents: torch.Tensor = parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return latents
