"""Blocks with the classes, names and arguments of Wan-Video's, written for these tests."""

from typing import Any

import torch
from torch import nn

flash_calls: list[int] = []


def rope_apply(x: torch.Tensor, grid_sizes: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    half, out = freqs.shape[1], []
    time, height, width = freqs.split([half - 2 * (half // 3), half // 3, half // 3], dim=1)
    for one, (f, h, w) in zip(x, grid_sizes.tolist(), strict=True):
        table = torch.cat(
            [
                time[:f, None, None].expand(f, h, w, -1),
                height[None, :h, None].expand(f, h, w, -1),
                width[None, None, :w].expand(f, h, w, -1),
            ],
            dim=-1,
        ).reshape(f * h * w, 1, -1)
        pairs = one[: len(table)].double().reshape(len(table), one.shape[1], -1, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * table).flatten(2)
        out.append(torch.cat([turned, one[len(table) :]]))
    return torch.stack(out).float()


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_lens: Any = None, k_lens: Any = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    flash_calls.append(q.shape[1])
    made = []
    for number in range(q.shape[0]):
        last = k.shape[1] if k_lens is None else int(k_lens[number])
        own = q[number], k[number, :last], v[number, :last]
        own = [part.transpose(0, 1)[None].to(torch.bfloat16) for part in own]
        made.append(nn.functional.scaled_dot_product_attention(*own)[0].transpose(0, 1))
    return torch.stack(made).type(q.dtype)


class WanRMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        return (wide * scale).type_as(x) * self.weight


class WanLayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type_as(x)


class WanSelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, window_size: Any, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = WanRMSNorm(dim) if qk_norm else nn.Identity()
        self.norm_k = WanRMSNorm(dim) if qk_norm else nn.Identity()

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1)

    def forward(self, x: Any, seq_lens: Any, grid_sizes: Any, freqs: Any) -> torch.Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        q, k = (rope_apply(self.split(part), grid_sizes, freqs) for part in (q, k))
        seen = flash_attention(
            q=q, k=k, v=self.split(v), k_lens=seq_lens, window_size=self.window_size
        )
        return self.o(seen.flatten(2))


class WanT2VCrossAttention(WanSelfAttention):
    def forward(self, x: Any, context: Any, context_lens: Any) -> torch.Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (self.split(part) for part in (q, k, v))
        return self.o(flash_attention(q, k, v, k_lens=context_lens).flatten(2))


class WanI2VCrossAttention(WanSelfAttention):
    def __init__(self, dim: int, num_heads: int, window_size: Any, qk_norm: bool) -> None:
        super().__init__(dim, num_heads, window_size, qk_norm)
        self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm_k_img = WanRMSNorm(dim) if qk_norm else nn.Identity()

    def forward(self, x: Any, context: Any, context_lens: Any) -> torch.Tensor:
        image, text = context[:, :-512], context[:, -512:]
        q = self.split(self.norm_q(self.q(x)))
        k, v = self.split(self.norm_k(self.k(text))), self.split(self.v(text))
        seen = flash_attention(q, k, v, k_lens=context_lens).flatten(2)
        k = self.split(self.norm_k_img(self.k_img(image)))
        of_image = flash_attention(q, k, self.split(self.v_img(image))).flatten(2)
        return self.o(seen + of_image)


_CROSSING = {"t2v_cross_attn": WanT2VCrossAttention, "i2v_cross_attn": WanI2VCrossAttention}


class WanAttentionBlock(nn.Module):
    def __init__(
        self, cross_attn_type: str, dim: int, ffn_dim: int, num_heads: int,
        window_size: Any = (-1, -1), qk_norm: bool = True, cross_attn_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.qk_norm = num_heads, qk_norm
        self.cross_attn_norm = cross_attn_norm
        self.norm1 = WanLayerNorm(dim, elementwise_affine=False)
        self.self_attn = WanSelfAttention(dim, num_heads, window_size, qk_norm)
        self.norm3 = WanLayerNorm(dim) if cross_attn_norm else nn.Identity()
        self.cross_attn = _CROSSING[cross_attn_type](dim, num_heads, (-1, -1), qk_norm)
        self.norm2 = WanLayerNorm(dim, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Any, e: Any, seq_lens: Any, grid_sizes: Any, freqs: Any, context: Any,
        context_lens: Any,
    ) -> torch.Tensor:  # fmt: skip
        e = (self.modulation + e).chunk(6, dim=1)
        normed = self.norm1(x).float() * (1 + e[1]) + e[0]
        x = x + self.self_attn(normed, seq_lens, grid_sizes, freqs) * e[2]
        x = x + self.cross_attn(self.norm3(x), context, context_lens)
        return x + self.ffn(self.norm2(x).float() * (1 + e[4]) + e[3]) * e[5]


class WanModel(nn.Module):
    """Two clips of unlike sizes, the smaller one padded."""

    def __init__(self, kind: str = "t2v", dim: int = 48, num_layers: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WanAttentionBlock(f"{kind}_cross_attn", dim, 2 * dim, 2, cross_attn_norm=True)
            for _ in range(num_layers)
        )
        self.text_embedding = nn.Linear(32, dim)
        phases = torch.outer(torch.arange(64).double(), torch.linspace(1, 0.01, dim // 4).double())
        self.freqs = torch.polar(torch.ones_like(phases), phases)

    def forward(self, x: torch.Tensor, e: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        grids = torch.tensor([[5, 6, 8], [3, 6, 8]])
        lengths = grids.prod(dim=1)
        for block in self.blocks:
            x = block(
                x, e=e, seq_lens=lengths, grid_sizes=grids, freqs=self.freqs,
                context=self.text_embedding(text), context_lens=None,
            )  # fmt: skip
        return x
