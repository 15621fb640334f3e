"""Following a live model's forward: what it costs, and that the model is as it was afterwards."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import ArgsError, ModelError
from blockswap.layout.geometry import WanGeometry, find_variant, parameter_count
from blockswap.plan.inputs.workload import ForwardCost, Workload, token_count
from blockswap.predict import predict_forward, predict_module

LARGE = find_variant("wan2.1-t2v-14b")
TINY = WanGeometry(
    dim=32, ffn_dim=64, num_layers=2, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)
CLIP = Workload(64, 64, 5)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.lin(x)


class Model(nn.Module):
    """Keeps things of a forward, as real models do."""

    def __init__(self, *, asks: bool = False, dim: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim) for _ in range(3))
        self.register_buffer("scale", torch.ones(dim))
        self.table = torch.ones(1, dim)
        self.seen: list[torch.Tensor] = []
        self.asks = asks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = self.table.to(x.device)
        self.last = x
        self.seen.append(x)
        if self.asks and x.sum() > 0:
            return x
        for block in self.blocks:
            x = block(x) * self.scale * self.table
        return x


def test_the_model_is_as_it_was() -> None:
    model = Model()
    before = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    table, names = model.table, set(vars(model))
    cost = predict_module(model, (torch.ones(4, 8),))
    assert cost == predict_module(model, kwargs={"x": torch.empty(4, 8, device="meta")})
    assert all(model.state_dict(keep_vars=True)[name] is tensor for name, tensor in before.items())
    assert model.table is table
    assert set(vars(model)) == names
    assert model.seen == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(torch.ones(4, 8)).device.type == "cpu"


def test_bytes_and_flops() -> None:
    """At the peak: x, the table, what came into the second block, its product, its sum."""
    assert predict_module(Model(dim=256), (torch.ones(4, 256),)) == ForwardCost(
        activation_bytes=4096 + 1024 + 3 * 4096,
        input_bytes=4096,
        output_bytes=4096 + 1024,  # the model keeps the table
        unit_flops=tuple((f"blocks.{i}", 2 * 4 * 256 * 256) for i in range(3)),
        rest_flops=0,
    )


def test_a_model_that_asks_for_values() -> None:
    model = Model(asks=True)
    with pytest.raises(ModelError, match=r"cannot be followed without data .*item"):
        predict_module(model, (torch.empty(4, 8, device="meta"),))
    assert model.seen == []
    assert model.blocks[0].lin.weight.device.type == "cpu"
    assert predict_module(model, (torch.ones(4, 8),)).flops == 0  # it returns at once
    assert predict_module(model, (-torch.ones(4, 8),)).flops == 3 * 2 * 4 * 8 * 8


class Choosing(nn.Module):
    """Runs its blocks on the rows that a mask leaves, and on as many more as it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = mask.bool().clone()
        kept[0] = True
        rows = torch.cat([x[kept], x.new_zeros(int(kept.sum()), 8), x[(~kept).nonzero()[:, 0]]])
        rows = rows.repeat_interleave(torch.tensor([kept.tolist().count(True)] * len(rows)), dim=0)
        for block in self.blocks:
            rows = block(rows)
        return rows


def test_values_that_follow_from_the_inputs_are_known() -> None:
    """Three of five rows are chosen, three made up, two left over: eight, three times each."""
    mask = torch.tensor([0, 1, 1, 0, 0])
    cost = predict_module(Choosing(), (torch.empty(5, 8, device="meta"), mask))
    assert cost.flops == 3 * 2 * (8 * 3) * 8 * 8
    assert mask.tolist() == [0, 1, 1, 0, 0]


def test_what_was_written_to_with_unknown_values_is_unknown() -> None:
    class Writing(Choosing):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            view = mask[1:]
            mask.add_(x[:, 0].to(mask.dtype))
            return super().forward(x, torch.cat([view, view[:1]]))

    with pytest.raises(ModelError, match="cannot be followed without data"):
        predict_module(Writing(), (torch.empty(5, 8, device="meta"), torch.ones(5).long()))


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ModelError, match="check the example inputs"):
        predict_module(Model(), (torch.ones(4, 9),))


def test_a_model_without_blocks() -> None:
    with pytest.raises(ModelError, match="has no transformer blocks"):
        predict_module(nn.Linear(2, 2), (torch.ones(1, 2),))


def test_a_swapped_model_is_refused_and_a_closed_one_is_not() -> None:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        ffn_dim=64,
        num_layers=2,
    ).eval()
    given = {
        "hidden_states": torch.ones(1, 4, 2, 4, 4),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.ones(1, 5, 24),
    }
    cost = predict_module(model, kwargs=given)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=1), device="cpu"):
        with pytest.raises(ModelError, match=r"is swapped: predict .* before"):
            predict_module(model, kwargs=given)
    assert predict_module(model, kwargs=given) == cost


class Halved(torch.Tensor):
    """A weight stored in half of its size and widened in each operation, as quantisers do."""

    @staticmethod
    def __new__(cls, small: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, small.shape, dtype=torch.float32, device=small.device
        )

    def __init__(self, small: torch.Tensor) -> None:
        self.small = small

    def __tensor_flatten__(self) -> Any:
        return ["small"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Any:
        return Halved(inner["small"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach.default:
            return return_and_correct_aliasing(func, args, kwargs, Halved(args[0].small.detach()))
        if func is torch.ops.aten._to_copy.default:
            return Halved(args[0].small.to(kwargs["device"]))
        wide = [arg.small.float() if isinstance(arg, Halved) else arg for arg in args]
        return func(*wide, **kwargs)


def test_what_a_tensor_subclass_unpacks_is_counted() -> None:
    plain, packed = Model(dim=64), Model(dim=64)
    for block in (*plain.blocks, *packed.blocks):
        block.lin = nn.Linear(64, 64, bias=False)
    for block in packed.blocks:
        small = Halved(block.lin.weight.detach().half())
        block.lin._parameters["weight"] = nn.Parameter(small, requires_grad=False)
    given = (torch.ones(4, 64),)
    expected, found = predict_module(plain, given), predict_module(packed, given)
    assert found.unit_flops == expected.unit_flops
    # The widened weight, and not yet the block's sum.
    assert found.activation_bytes == expected.activation_bytes + 64 * 64 * 4 - 4 * 64 * 4


@pytest.mark.parametrize("geometry", [TINY, replace(TINY, vace_layers=(0, 2), vace_in_channels=8)])
def test_depth_adds_flops_and_no_bytes_but_for_hints(geometry: WanGeometry) -> None:
    three, six = (predict_forward(replace(geometry, num_layers=n), CLIP) for n in (3, 6))
    assert six.activation_bytes == three.activation_bytes
    assert six.rest_flops == three.rest_flops
    block = three.flops_by_unit["blocks.0"]
    assert all(six.flops_by_unit[f"blocks.{index}"] == block for index in range(6))
    assert six.flops == three.flops + 3 * block
    if geometry.vace_layers:
        hints = replace(geometry, num_layers=6, vace_layers=(0, 2, 4))
        assert predict_forward(hints, CLIP).activation_bytes > six.activation_bytes


def test_the_flops_of_a_14b_block_by_formula() -> None:
    """2 per weight and token, and 4 x tokens x keys x dim of attention."""
    clip = Workload(1280, 720, 81)
    cost, tokens, dim = predict_forward(LARGE, clip), 75600, 5120
    assert token_count(LARGE, clip) == tokens
    of_video = 2 * tokens * (6 * dim * dim + 2 * dim * LARGE.ffn_dim)
    of_text = 2 * 512 * 2 * dim * dim  # the cross-attention's keys and values
    attention = 4 * tokens * tokens * dim + 4 * tokens * 512 * dim
    assert cost.flops_by_unit["blocks.0"] == of_video + of_text + attention
    assert len(cost.unit_flops) == 41
    # The rule of thumb, with every parameter of the block and self-attention alone: within 5 %.
    block = parameter_count(LARGE) - parameter_count(replace(LARGE, num_layers=39))
    rule = 2 * block * tokens + 4 * tokens * tokens * dim
    assert abs(rule / cost.flops_by_unit["blocks.0"] - 1) < 0.05


def test_bytes_grow_with_the_clip_as_tokens_do() -> None:
    """All large tensors are [tokens, ...]: those of the text hardly count."""
    short, long = (predict_forward(LARGE, Workload(832, 480, n)) for n in (41, 81))
    assert long.activation_bytes / short.activation_bytes == pytest.approx(21 / 11, rel=0.01)


def test_a_timestep_for_every_token_is_paid_for() -> None:
    geometry = find_variant("wan2.2-ti2v-5b")
    clip = Workload(1280, 704, 121)
    plain = predict_forward(geometry, clip)
    per_token = predict_forward(geometry, replace(clip, per_token_timestep=True))
    # Six modulations of fp32 for every token are alive in a block, made from as many in bf16.
    modulation_bytes = 27280 * 6 * geometry.dim * 4
    assert per_token.activation_bytes > plain.activation_bytes + modulation_bytes


def test_a_clip_the_model_cannot_cut_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ArgsError, match="multiple of 32"):
        predict_forward(find_variant("wan2.2-ti2v-5b"), Workload(1280, 720, 121))


def test_a_prediction_leaves_no_hooks_of_a_library_behind() -> None:
    """transformers installs hooks in a first forward that records hidden states, and notes it."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = LlamaModel(config).eval()(ids, output_hidden_states=True).hidden_states
        predict_module(model, (ids,), {"output_hidden_states": True})
        found = model(ids, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 4
