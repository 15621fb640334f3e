"""Models that a library loaded quantised: swapped from RAM in the bytes that they have there."""

from typing import Any

import gguf
import pytest
import torch
from files import MODELS, build, forward, is_packed, kind_of, weights
from packed import gguf_blocks

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import ModelError

DEVICES = ("cpu", "sim-eager", "sim-lazy")


def gguf_model(name: str, kind: str) -> Any:
    """As diffusers' `GGUFQuantizationConfig` makes it: layers that dequantise by themselves."""
    from diffusers.quantizers.gguf.utils import GGUFParameter, _replace_with_gguf_linear

    state: dict[str, torch.Tensor] = {}
    for key, tensor in weights(kind).items():
        if not is_packed(key, tensor):
            state[key] = torch.nn.Parameter(tensor.to(torch.bfloat16), requires_grad=False)
            continue
        block = gguf.GGMLQuantizationType[kind_of(name, key)]
        raw = torch.from_numpy(gguf_blocks(block.name, tensor))
        state[key] = GGUFParameter(raw, quant_type=block)
    model = _replace_with_gguf_linear(build(kind).to(torch.bfloat16), torch.bfloat16, state)
    for key, tensor in state.items():
        layer, _, last = key.rpartition(".")
        model.get_submodule(layer)._parameters[last] = tensor
    return model.eval()


@pytest.mark.parametrize(
    ("name", "kind"), [("gguf-mixed", "t2v"), ("gguf-Q4_K", "vace"), ("gguf-Q8_0", "i2v")]
)
def test_a_gguf_model_of_diffusers_is_swapped_in_its_blocks(
    name: str, kind: str, device: torch.device
) -> None:
    plain = gguf_model(name, kind).to(device)
    expected = forward(plain, kind, device)
    model = gguf_model(name, kind)
    before = dict(model.named_parameters())
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3, prefetch_blocks=1), device=device) as s:
        for _ in range(2):
            assert torch.equal(forward(model, kind, device), expected)
        streamed = [unit.slab_bytes for unit in s.plan.units if unit.tier == "ram"]
    if device.type != "cpu":
        held = sum(p.nbytes for n, p in before.items() if n.startswith("blocks."))
        assert held <= sum(streamed) <= held + 3 * 60 * 256
    after = dict(model.named_parameters())
    assert all(after[key] is tensor for key, tensor in before.items())
    assert kind in MODELS
    assert torch.equal(forward(gguf_model(name, kind).to("cpu"), kind, torch.device("cpu")),
                       forward(model, kind, torch.device("cpu")))  # fmt: skip


def test_a_parameter_with_tensors_on_it_is_refused() -> None:
    """As bitsandbytes' are: what lies beside the array would stay behind."""

    class Packed(torch.nn.Parameter):
        pass

    model = build("t2v")
    weight = torch.zeros(8, dtype=torch.uint8)
    packed: Any = torch.Tensor._make_subclass(Packed, weight, False)
    packed.absmax = torch.ones(2)
    model.blocks[0].attn1.to_q._parameters["weight"] = packed
    with pytest.raises(ModelError, match="does not say what it consists of"):
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=2), device="cpu")


def test_a_parameter_that_quantises_itself_is_refused_on_an_accelerator(
    sim: Any, sim_device: torch.device
) -> None:
    """As the 8-bit ones of bitsandbytes: they do it when they are moved."""
    own = type("Int8Params", (torch.nn.Parameter,), {"__module__": "bitsandbytes.nn.modules"})
    model = build("t2v")
    table = model.blocks[0].attn1.to_q._parameters
    weight: Any = torch.Tensor._make_subclass(own, table["weight"].detach(), False)
    weight.CB, weight.has_fp16_weights = None, False
    table["weight"] = weight
    args = BlockSwapArgs(blocks_to_swap=2)
    with pytest.raises(ModelError, match="a Int8Params of bitsandbytes, which quantises itself"):
        swap_blocks(model, args, device=sim_device)
    swap_blocks(model, args, device="cpu").close()
