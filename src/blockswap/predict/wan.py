"""Inputs that diffusers' pipelines give a Wan transformer, and its dtypes, run without data."""

from dataclasses import replace
from math import prod

import torch

from ..adapters.skeleton import build_skeleton, keeps_fp32
from ..errors import ModelError
from ..layout.geometry import WanGeometry
from ..pieces import Pieces
from ..plan.inputs.workload import ForwardCost, Workload, latent_size
from .module import predict_module

IMAGE_TOKENS = 257  # of CLIP ViT-H/14 at 224 x 224: 16 x 16 patches and the class token

_FOLLOWED_LAYERS = 3  # a first, one like any, and one behind a VACE hint


def follow_forward(geometry: WanGeometry, workload: Workload) -> ForwardCost:
    """Follows one forward. Raises ArgsError and ModelError as `predict_forward` does."""
    return predict_module(
        typed_skeleton(geometry, torch_dtype(workload.dtype)),
        kwargs=forward_inputs(geometry, workload),
        attention=workload.attention,
        kernels=workload.kernels,
    )


def follow_in_pieces(geometry: WanGeometry, workload: Workload, chunk_tokens: int) -> int:
    """Bytes of activations of a forward in pieces of at most so many tokens.

    Of three layers: in pieces nothing is left of one when the next begins, VACE hints included.
    Of each size two pieces are followed. Raises ModelError where the model cannot run so.
    """
    model = typed_skeleton(_shallow(geometry), torch_dtype(workload.dtype))
    pieces = Pieces(model, chunk_tokens, refuse_whole, samples=True)
    try:
        cost = predict_module(
            model,
            kwargs=forward_inputs(geometry, workload),
            attention=workload.attention,
            kernels=workload.kernels,
        )
    finally:
        pieces.remove()
    return cost.activation_bytes


def refuse_whole(sentence: str) -> None:
    """What a forward in pieces that is followed says of blocks that would run whole."""
    raise ModelError(f"a forward in pieces cannot be followed: {sentence}")


def _shallow(geometry: WanGeometry) -> WanGeometry:
    if geometry.num_layers <= _FOLLOWED_LAYERS:
        return geometry
    vace = tuple(layer for layer in (0, 2) if geometry.vace_layers)
    return replace(geometry, num_layers=_FOLLOWED_LAYERS, vace_layers=vace)


def torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def typed_skeleton(geometry: WanGeometry, dtype: torch.dtype) -> torch.nn.Module:
    """The class on meta with parameters of `dtype`, but for those that it wants in fp32."""
    model = build_skeleton(geometry)
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if keeps_fp32(model, name) else dtype
        parameter.data = parameter.data.to(wanted)
    return model


def forward_inputs(geometry: WanGeometry, workload: Workload) -> dict[str, torch.Tensor | bool]:
    """What diffusers' pipelines pass to the transformer, on meta.

    A geometry with an image embedder gets image features (one image, or two of a first-and-last
    frame model); one with VACE blocks gets control latents.
    """
    dtype, batch = torch_dtype(workload.dtype), workload.batch
    size = latent_size(geometry, workload)

    def meta(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    given: dict[str, torch.Tensor | bool] = {
        "hidden_states": meta(batch, geometry.in_channels, *size),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, workload.text_tokens, geometry.text_dim),
        "return_dict": False,
    }
    if workload.per_token_timestep:
        tokens = prod(size) // prod(geometry.patch_size)
        given["timestep"] = meta(batch, tokens, dtype=torch.float32)
    if geometry.image_dim is not None:
        images, tokens = batch, IMAGE_TOKENS
        if geometry.pos_embed_seq_len is not None:
            images, tokens = 2 * batch, geometry.pos_embed_seq_len // 2
        given["encoder_hidden_states_image"] = meta(images, tokens, geometry.image_dim)
    if geometry.vace_in_channels is not None:
        given["control_hidden_states"] = meta(batch, geometry.vace_in_channels, *size)
    return given
