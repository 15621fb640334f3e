"""Text encoders and VAEs of models beside Wan's: what they need, followed without data."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from inspect import signature
from typing import Any

from ..plan.inputs.workload import ComputeDtype, Workload
from ..published import WAN_VAE, Encoder, Family, Part, resolved, sizes_of
from .cache import counts, library_versions, remembered
from .phase import SLOTS, PhaseCost
from .published_forward import made
from .text_encoder import TextEncoderDtype
from .vae import predict_vae

_HALF = "bfloat16"


def predict_published_text(family: Family, dtype: TextEncoderDtype) -> PhaseCost:
    """Encoding one prompt: all text encoders are on the device, one after the other runs.

    "float8": matrices in fp8, embeddings and norms in 16 bits; computed in 16 bits. Raises
    ModelError where transformers is absent.
    """
    costs = [_encoder(encoder, dtype) for encoder in family.encoders]
    return PhaseCost(
        weight_bytes=sum(cost.weight_bytes for cost in costs),
        activation_bytes=max(cost.activation_bytes for cost in costs),
        output_bytes=sum(cost.output_bytes for cost in costs),
        flops=sum(cost.flops for cost in costs),
        streamed_bytes=sum(cost.streamed_bytes for cost in costs),
    )


def predict_published_vae(
    family: Family, clip: Workload, *, tiled: bool, dtype: ComputeDtype
) -> PhaseCost:
    """Decoding one clip's latents, or a picture's. Raises as the forward's prediction does."""
    if family.vae == WAN_VAE:
        return predict_vae(clip, version="wan2.1", tiled=tiled, dtype=dtype)
    question = _question("VAE", family.vae, {
        "latents": repr(family.latents), "clip": asdict(clip), "tiled": tiled, "dtype": dtype,
    })  # fmt: skip
    return _kept(question, lambda: _follow_vae(family, clip, tiled=tiled, dtype=dtype))


def _encoder(encoder: Encoder, dtype: TextEncoderDtype) -> PhaseCost:
    question = _question("text encoder", encoder.part, {"tokens": encoder.tokens, "dtype": dtype})
    return _kept(question, lambda: _follow_encoder(encoder, dtype))


def _question(kind: str, part: Part, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": f"{kind} beside a model of diffusers",
        "class": part.class_name,
        "config": repr(part.config),
        **more,
        "libraries": library_versions("torch", "diffusers", "transformers"),
    }


def _kept(question: dict[str, Any], follow: Callable[[], PhaseCost]) -> PhaseCost:
    cost: PhaseCost = remembered(
        question,
        lambda: asdict(follow()),
        lambda kept: PhaseCost(**counts(kept, (field.name for field in fields(PhaseCost)))),
    )
    return cost


def _follow_encoder(encoder: Encoder, dtype: TextEncoderDtype) -> PhaseCost:
    import torch

    from ..adapters.hosts.empty_models import empty_encoder
    from .module import record_call
    from .recorder import Recorder

    computed = getattr(torch, _HALF if dtype == "float8" else dtype)
    model = empty_encoder(encoder.part.class_name, encoder.part.config, computed)
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    small = dtype == "float8"
    stored = {
        id(p): p.numel() if small and p.dim() > 1 and id(p) not in tables else p.nbytes
        for p in model.parameters()
    }
    ids = torch.ones(1, encoder.tokens, dtype=torch.int64, device="cpu")
    cost = record_call(
        Recorder([*model.parameters(), *model.buffers()]),
        lambda ids, mask: model(ids, attention_mask=mask, output_hidden_states=True),
        ((ids, torch.ones_like(ids)), {}),
        label=encoder.part.class_name,
    )
    return PhaseCost(
        weight_bytes=sum(stored.values()),
        activation_bytes=cost.activation_bytes,
        output_bytes=cost.output_bytes,
        flops=cost.flops,
        streamed_bytes=_streamed_bytes(model, stored, small=small, tokens=encoder.tokens),
    )


def _streamed_bytes(model: Any, stored: Mapping[int, int], *, small: bool, tokens: int) -> int:
    """Slots, what lies outside the blocks, and of a table of tokens the rows of the prompt.

    `stored`: bytes of each parameter by its id. fp8 is made 16 bits behind a block's slot.
    """
    from ..adapters.live import describe_module

    live = describe_module(model)
    blocks = [[t.tensor for t in unit.tensors] for unit in live.units]
    slot = max(sum(stored.get(id(t), t.nbytes) for t in block) for block in blocks)
    decoded = max(sum(t.nbytes for t in block) for block in blocks) if small else 0
    outside = sum(stored.get(id(t.tensor), t.tensor.nbytes) for t in live.rest)
    tables = [t.tensor for t in live.tables]
    rows = sum(min(tokens, table.shape[0]) * table[0].nbytes for table in tables)
    return min(SLOTS, len(blocks)) * slot + decoded + outside + rows


def _follow_vae(family: Family, clip: Workload, *, tiled: bool, dtype: ComputeDtype) -> PhaseCost:
    import torch

    from ..adapters.hosts.empty_models import empty_model
    from .module import record_call
    from .recorder import Recorder
    from .vae_chunks import like_calls

    vae = empty_model(family.vae.class_name, family.vae.config, getattr(torch, dtype))
    for blend in ("blend_v", "blend_h", "blend_t"):
        if hasattr(vae, blend):  # in place, a line at a time, thousands of times
            setattr(vae, blend, lambda _, tile, __: tile)
    if tiled:
        vae.enable_tiling()
    recorder = Recorder([*vae.parameters(), *vae.buffers()])
    if "feat_cache" not in signature(vae.decoder.forward).parameters:
        vae.decoder = like_calls(vae.decoder, recorder)
    latents = made(resolved(family.latents, sizes_of(family, {}, clip)), dtype)
    cost = record_call(
        recorder,
        vae.decode,
        ((latents,), {"return_dict": False}),
        label=family.vae.class_name,
    )
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    return PhaseCost(weights, cost.activation_bytes, cost.output_bytes, cost.flops)
