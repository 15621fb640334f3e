"""A small module laid out as Wan-Video's own `WanModel`, and a smaller one with the same rooms.

`WanModel` has the names, the order of operations and the habits of the original: complex rope
tables kept outside the parameters, embeddings in float32, VACE blocks that run before the blocks.
`MiniWan` keeps the names alone, so that thousands of forwards take seconds.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _like(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.to(weight.dtype)


def rope_table(positions: int, head_dim: int) -> torch.Tensor:
    """Complex unit vectors `[positions, head_dim / 2]`."""
    rates = 10000.0 ** (-torch.arange(0, head_dim, 2, device="cpu").double() / head_dim)
    angles = torch.outer(torch.arange(positions, device="cpu").double(), rates)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotates `x` `[batch, tokens, heads, head_dim]` by its token's position."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * table[: x.shape[1], None].to(torch.complex64)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + torch.randn(dim) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x.float() * scale).to(x.dtype) * _like(self.weight, x)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        x = _like(x, self.q.weight)
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return self.o(_attend(apply_rope(q, table), apply_rope(k, table), v))


class CrossAttention(SelfAttention):
    def __init__(self, dim: int, heads: int, *, image: bool) -> None:
        super().__init__(dim, heads)
        if image:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, context: torch.Tensor, image: torch.Tensor | None
    ) -> torch.Tensor:
        x, context = _like(x, self.q.weight), _like(context, self.q.weight)
        q = self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1))
        k, v = self.norm_k(self.k(context)), self.v(context)
        out = _attend(q, k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1)))
        if image is not None:
            image = _like(image, self.k_img.weight)
            k, v = self.norm_k_img(self.k_img(image)), self.v_img(image)
            k, v = (part.unflatten(-1, (self.heads, -1)) for part in (k, v))
            out = out + _attend(q, k, v)
        return self.o(out)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k.to(q.dtype), v.to(q.dtype)))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, dim: int, ffn: int, heads: int, *, image: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, heads, image=image)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: torch.Tensor,
        e: torch.Tensor,
        context: torch.Tensor,
        image: torch.Tensor | None,
        table: torch.Tensor,
    ) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + e).chunk(6, 1)
        y = self.self_attn(self.norm1(x.float()) * (1 + scale1) + shift1, table)
        x = (x.float() + y.float() * gate1).to(x.dtype)
        x = x + self.cross_attn(self.norm3(_like(x, self.norm3.weight)), context, image).to(x.dtype)
        y = _like(self.norm2(x.float()) * (1 + scale2) + shift2, self.ffn[0].weight)
        return (x.float() + self.ffn(y).float() * gate2).to(x.dtype)


class VaceBlock(Block):
    def __init__(self, dim: int, ffn: int, heads: int, *, first: bool) -> None:
        super().__init__(dim, ffn, heads)
        if first:
            self.before_proj = nn.Linear(dim, dim)
        self.after_proj = nn.Linear(dim, dim)
        self.first = first

    def forward(self, c: torch.Tensor, x: torch.Tensor, *args: object) -> torch.Tensor:  # type: ignore[override]
        """`c` carries the hints found so far in front: `[blocks, batch, tokens, dim]`."""
        if self.first:
            hints, c = [], self.before_proj(_like(c, self.before_proj.weight)).to(x.dtype) + x
        else:
            *hints, c = torch.unbind(c)
        c = super().forward(c, *args)  # type: ignore[arg-type]
        hint = self.after_proj(_like(c, self.after_proj.weight)).to(x.dtype)
        return torch.stack([*hints, hint, c])


class ImageEmbedder(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.proj:
            weight = getattr(layer, "weight", None)
            x = layer(x if weight is None else _like(x, weight))
        return x


class Head(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.modulation.float() + e.unsqueeze(1)).chunk(2, 1)
        return self.head(_like(self.norm(x.float()) * (1 + scale) + shift, self.head.weight))


class WanModel(nn.Module):
    """The original's rooms: blocks, vace_blocks, text_embedding, img_emb, patch_embedding, head."""

    def __init__(
        self,
        *,
        dim: int = 48,
        ffn: int = 96,
        heads: int = 3,
        layers: int = 6,
        image_dim: int | None = None,
        vace: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.freq_dim = 32
        self.vace_layers = vace
        self.patch_embedding = nn.Conv3d(4, dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(
            nn.Linear(32, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(self.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        image = image_dim is not None
        self.blocks = nn.ModuleList(Block(dim, ffn, heads, image=image) for _ in range(layers))
        self.head = Head(dim, 16)
        if image_dim is not None:
            self.img_emb = ImageEmbedder(image_dim, dim)
        if vace:
            self.vace_patch_embedding = nn.Conv3d(8, dim, (1, 2, 2), (1, 2, 2))
            self.vace_blocks = nn.ModuleList(
                VaceBlock(dim, ffn, heads, first=i == 0) for i in range(len(vace))
            )
        self.freqs = rope_table(256, dim // heads)  # no buffer, as in the original

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None = None,
        vace_context: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`x` `[batch, 4, frames, height, width]` -> `[batch, tokens, 16]`."""
        if self.freqs.device != x.device:
            self.freqs = self.freqs.to(x.device)
        x = _patches(self.patch_embedding, x)
        e = self.time_embedding(_like(self._sines(t), self.time_embedding[0].weight))
        e0 = self.time_projection(_like(e, self.time_projection[1].weight))
        context = self.text_embedding(_like(context, self.text_embedding[0].weight))
        image = None if clip_fea is None else self.img_emb(clip_fea)
        args = (e0.unflatten(1, (6, -1)).float(), context, image, self.freqs)
        hints = self._hints(x, vace_context, args)
        for number, block in enumerate(self.blocks):
            x = block(x, *args)
            if number in hints:
                x = x + hints[number]
        return self.head(x, e.float())

    def _hints(
        self, x: torch.Tensor, vace_context: torch.Tensor | None, args: tuple[object, ...]
    ) -> dict[int, torch.Tensor]:
        if vace_context is None:
            return {}
        c = _patches(self.vace_patch_embedding, vace_context)
        for block in self.vace_blocks:
            c = block(c, x, *args)
        return dict(zip(self.vace_layers, torch.unbind(c)[:-1], strict=True))

    def _sines(self, t: torch.Tensor) -> torch.Tensor:
        half = self.freq_dim // 2
        rates = 10000.0 ** (-torch.arange(half, device=t.device).double() / half)
        angles = t.double()[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], 1).float()


def _patches(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    return conv(_like(x, conv.weight)).flatten(2).transpose(1, 2).contiguous()


class MiniBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm3 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 1, dim) / 4)
        self.fault: BaseException | type[BaseException] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm3(_like(x, self.norm3.weight))
        if self.fault is not None:
            raise self.fault
        y = self.ffn(_like(y, self.ffn[0].weight))
        return x + y.to(x.dtype) * _like(self.modulation, x)


class MiniWan(nn.Module):
    """The least model that still looks like Wan: a text embedder, blocks, a head.

    `order` is the order in which a forward runs the blocks, None for the usual one; a block's
    `fault` is raised in the middle of its forward.
    """

    def __init__(self, *, dim: int = 16, layers: int = 5) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(4, dim)
        self.text_embedding = nn.Sequential(nn.Linear(8, dim), nn.GELU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(MiniBlock(dim) for _ in range(layers))
        self.head = nn.Linear(dim, 4)
        self.order: tuple[int, ...] | None = None

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """`x` `[batch, tokens, 4]`, `context` `[batch, 8]` -> `[batch, tokens, 4]`."""
        context = self.text_embedding(_like(context, self.text_embedding[0].weight))
        x = self.patch_embedding(_like(x, self.patch_embedding.weight)) + context[:, None]
        for index in self.order or range(len(self.blocks)):
            x = self.blocks[index](x)
        return self.head(_like(x, self.head.weight))
