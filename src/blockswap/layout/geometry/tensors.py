"""The tensors of a Wan transformer: this module owns every name and shape, once, for all variants.

Validation of files and synthesis of files both read this list, in the order of the vendors'
`state_dict`. d = dim, f = ffn_dim.
"""

import math
from collections.abc import Iterator

from .naming import to_diffusers_key
from .values import WanGeometry

Shape = tuple[int, ...]
Named = tuple[str, Shape]


def tensor_names(geometry: WanGeometry) -> dict[str, Shape]:
    """Key -> shape of every tensor, in original naming whatever `geometry.naming` says."""
    return dict(_model(geometry))


def file_names(geometry: WanGeometry) -> dict[str, Shape]:
    """Key -> shape of every tensor, spelled as `geometry.naming` says."""
    names = tensor_names(geometry)
    if geometry.naming == "original":
        return names
    return {to_diffusers_key(key): shape for key, shape in names.items()}


def parameter_count(geometry: WanGeometry) -> int:
    """Number of elements of all tensors."""
    return sum(math.prod(shape) for shape in tensor_names(geometry).values())


def _model(geometry: WanGeometry) -> Iterator[Named]:
    d, patch = geometry.dim, geometry.patch_size
    yield from _affine("patch_embedding", (d, geometry.in_channels, *patch))
    yield from _linear("text_embedding.0", d, geometry.text_dim)
    yield from _linear("text_embedding.2", d, d)
    yield from _linear("time_embedding.0", d, geometry.freq_dim)
    yield from _linear("time_embedding.2", d, d)
    yield from _linear("time_projection.1", 6 * d, d)
    for index in range(geometry.num_layers):
        yield from _block(geometry, f"blocks.{index}")
    yield "head.modulation", (1, 2, d)
    yield from _linear("head.head", geometry.out_channels * math.prod(patch), d)
    if geometry.image_dim is not None:
        yield from _image_embedder(geometry, geometry.image_dim)
    for index in range(geometry.num_vace_blocks):
        yield from _vace_block(geometry, index)
    if geometry.vace_in_channels is not None:
        yield from _affine("vace_patch_embedding", (d, geometry.vace_in_channels, *patch))


def _block(geometry: WanGeometry, name: str) -> Iterator[Named]:
    d, f = geometry.dim, geometry.ffn_dim
    yield f"{name}.modulation", (1, 6, d)
    yield from _attention(geometry, f"{name}.self_attn")
    if geometry.cross_attn_norm:
        yield from _affine(f"{name}.norm3", (d,))
    yield from _attention(geometry, f"{name}.cross_attn")
    if geometry.added_kv:
        yield from _linear(f"{name}.cross_attn.k_img", d, d)
        yield from _linear(f"{name}.cross_attn.v_img", d, d)
        if geometry.qk_norm:
            yield f"{name}.cross_attn.norm_k_img.weight", (d,)
    yield from _linear(f"{name}.ffn.0", f, d)
    yield from _linear(f"{name}.ffn.2", d, f)


def _attention(geometry: WanGeometry, name: str) -> Iterator[Named]:
    d = geometry.dim
    for part in "qkvo":
        yield from _linear(f"{name}.{part}", d, d)
    if geometry.qk_norm:
        yield f"{name}.norm_q.weight", (d,)
        yield f"{name}.norm_k.weight", (d,)


def _vace_block(geometry: WanGeometry, index: int) -> Iterator[Named]:
    d, name = geometry.dim, f"vace_blocks.{index}"
    yield from _block(geometry, name)
    if index == 0:
        yield from _linear(f"{name}.before_proj", d, d)
    yield from _linear(f"{name}.after_proj", d, d)


def _image_embedder(geometry: WanGeometry, image_dim: int) -> Iterator[Named]:
    if geometry.pos_embed_seq_len is not None:
        yield "img_emb.emb_pos", (1, geometry.pos_embed_seq_len, image_dim)
    yield from _affine("img_emb.proj.0", (image_dim,))
    yield from _linear("img_emb.proj.1", image_dim, image_dim)
    yield from _linear("img_emb.proj.3", geometry.dim, image_dim)
    yield from _affine("img_emb.proj.4", (geometry.dim,))


def _linear(name: str, out_features: int, in_features: int) -> Iterator[Named]:
    yield f"{name}.weight", (out_features, in_features)
    yield f"{name}.bias", (out_features,)


def _affine(name: str, shape: Shape) -> Iterator[Named]:
    """A weight of any rank with one bias element for each of its first axis."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
