"""Weights that other libraries write, cast, move or add while a model is swapped: told, always."""

import gc

import pytest
import torch
from test_beside_diffusers import WIDTH, forward, tiny_transformer

from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.errors import StateError

peft = pytest.importorskip("peft")

CONFIG = {"r": 4, "init_lora_weights": False, "target_modules": ["to_q", "to_v"]}
CALLS = {
    "fuse_lora": (),
    "unfuse_lora": (),
    "fuse_qkv_projections": (),
    "enable_layerwise_casting": (torch.float8_e4m3fn, torch.float32),
    "enable_group_offload": (torch.device("cpu"),),
}


def adapted():
    torch.manual_seed(5)
    model = tiny_transformer()
    model.add_adapter(peft.LoraConfig(**CONFIG), "a")
    return model


def opened(tmp_path, device):
    tiny_transformer().save_pretrained(tmp_path)
    return open_transformer(tmp_path, BlockSwapArgs(blocks_to_swap=3), device=device)


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_write_weights_are_refused_before_they_write(sim_device, sim, call):
    model = adapted()
    before = torch.accelerator.memory_allocated()
    with swap_blocks(
        model, BlockSwapArgs(blocks="0,2", prefetch_blocks=1), device=sim_device
    ) as swap:
        want = forward(model, sim_device)
        with pytest.raises(StateError, match="while its blocks are streamed"):
            getattr(model, call)(*CALLS[call])
        for _ in range(3):
            assert torch.equal(forward(model, sim_device), want)
        torch.accelerator.synchronize()
        held = torch.accelerator.memory_allocated() - before
        assert held == swap.plan.device_bytes
    assert call not in vars(model)
    if call == "fuse_lora":  # and works again once the swap is closed
        model.fuse_lora()


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_refused_on_an_opened_model(tmp_path, device, call):
    model = opened(tmp_path, device)
    want = forward(model, device)
    with pytest.raises(StateError, match="while its blocks are streamed"):
        getattr(model, call)(*CALLS[call])
    assert torch.equal(forward(model, device), want)
    model.blockswap.close()


def test_an_adapter_without_data_is_never_computed_with(tmp_path, device):
    model = opened(tmp_path, device)
    want = forward(model, device)
    model.add_adapter(peft.LoraConfig(**CONFIG), "a")
    for _ in range(2):
        with pytest.raises(StateError, match=r"lora_[AB].a.weight came into .* has no data"):
            forward(model, device)
    model.delete_adapters("a")
    assert torch.equal(forward(model, device), want)
    model.blockswap.close()


def cast_on(model):
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(model.blocks[1], torch.float8_e4m3fn, torch.float32)


def offload_on(model):
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model.blocks[1], torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    )


@pytest.mark.parametrize("install", [cast_on, offload_on])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_cast_or_move_weights_are_refused(sim_device, sim, install, when):
    model = tiny_transformer()
    if when == "before":
        install(model)
        before = torch.accelerator.memory_allocated()
        with pytest.raises(StateError, match=r"a hook of diffusers on blocks\.1"):
            swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device=sim_device)
        assert torch.accelerator.memory_allocated() == before
        return
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device=sim_device):
        forward(model, sim_device)
        install(model)
        with pytest.raises(StateError, match=r"a hook of diffusers on blocks\.1"):
            forward(model, sim_device)


def test_adapters_merged_behind_our_back_are_refused_until_it_is_undone(sim_device, sim):
    from peft.tuners.tuners_utils import BaseTunerLayer

    sim.configure(mode="eager", races="off")  # the write itself is foreign, and unordered
    model = adapted()
    with swap_blocks(model, BlockSwapArgs(blocks="0,2", prefetch_blocks=1), device=sim_device):
        want = forward(model, sim_device)
        layers = [m for m in model.blocks[0].modules() if isinstance(m, BaseTunerLayer)]
        for layer in layers:
            layer.merge()
        with pytest.raises(StateError, match="adapters were merged"):
            forward(model, sim_device)
        for layer in layers:
            layer.unmerge()
        assert torch.allclose(forward(model, sim_device), want, atol=1e-5)


def test_caches_and_a_lora_fused_before_the_swap_go_on_working(sim_device, sim):
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    reference, model = adapted(), adapted()
    for each in (reference, model):
        each.fuse_lora()
        apply_first_block_cache(each, FirstBlockCacheConfig(threshold=0.1))
    reference.to(sim_device)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device=sim_device):
        for each in (reference, model):
            each._set_cache_context("one") if hasattr(each, "_set_cache_context") else None
        with reference.cache_context("one"), model.cache_context("one"):
            assert torch.equal(forward(model, sim_device), forward(reference, sim_device))


USES = {
    "a linear": lambda block: block.attn1.to_q(torch.zeros(1, 2, WIDTH)),
    "a norm": lambda block: block.norm2(torch.zeros(1, 2, WIDTH)),
    "a submodule": lambda block: block.ffn(torch.zeros(1, 2, WIDTH)),
    "arithmetic": lambda block: block.scale_shift_table + torch.zeros(1, 6, WIDTH),
    "a method": lambda block: block.attn1.to_q.weight.float(),
    "a write": lambda block: block.attn1.to_q.weight.add_(1),
    "its data": lambda block: torch.zeros(2, WIDTH) @ block.attn1.to_q.weight.data,
    "detached": lambda block: torch.zeros(2, WIDTH) @ block.attn1.to_q.weight.detach().data,
    "an index": lambda block: block.scale_shift_table[0],
    "the host": lambda block: block.attn1.to_q.weight.tolist(),
    "a stack": lambda block: torch.stack([block.attn1.to_q.weight, torch.zeros(WIDTH, WIDTH)]),
}


@pytest.mark.parametrize("use", USES)
@torch.no_grad()
def test_idle_weights_without_data_are_never_computed_with(tmp_path, device, use):
    model = opened(tmp_path, device)
    want = forward(model, device)
    idle = next(n for n, b in enumerate(model.blocks) if b.attn1.to_q.weight.is_meta)
    with pytest.raises(StateError, match=rf"blocks\.{idle}\..* while its block is not running"):
        USES[use](model.blocks[idle])
    weight = model.blocks[idle].attn1.to_q.weight  # to look at it is fine
    assert (weight.shape, weight.dtype, weight.is_meta) == ((WIDTH, WIDTH), torch.float32, True)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert "attn1.to_q.weight" in repr(dict(model.blocks[idle].named_parameters()))
    assert torch.equal(forward(model, device), want)
    model.blockswap.close()
    assert type(weight) is torch.nn.Parameter


@pytest.mark.parametrize("tier", ["streamed", "resident"])
def test_a_write_without_a_trace_is_found_when_debugging(sim_device, sim, capsys, tier):
    sim.configure(mode="eager", races="off")  # the write itself is foreign, and unordered
    model = tiny_transformer()
    args = BlockSwapArgs(blocks="0,2", prefetch_blocks=1, block_swap_debug=True)
    with swap_blocks(model, args, device=sim_device):
        want = forward(model, sim_device)
        assert torch.equal(forward(model, sim_device), want)
        block = 2 if tier == "streamed" else 1
        weight = model.blocks[block].ffn.net[2].weight
        before = weight.data.clone()
        weight.data += 1
        with pytest.raises(StateError, match=rf"blocks\.{block}\.ffn\.net\.2\.weight was written"):
            forward(model, sim_device)
        weight.data.copy_(before)
        assert torch.equal(forward(model, sim_device), want)


@pytest.mark.parametrize("moment", ["before a forward", "between forwards", "in a forward"])
def test_an_adapter_added_to_a_swapped_model_works_where_it_computes(sim_device, sim, moment):
    reference, model = tiny_transformer(), tiny_transformer()
    draw = {name: value for name, value in adapted().state_dict().items() if "lora_" in name}
    gc.collect()  # models of tests before this one
    before = torch.accelerator.memory_allocated()
    with swap_blocks(
        model, BlockSwapArgs(blocks="0,2", prefetch_blocks=1), device=sim_device
    ) as swap:
        planned = torch.accelerator.memory_allocated() - before
        assert planned == swap.plan.device_bytes
        if moment == "between forwards":
            forward(model, sim_device)
        if moment == "in a forward":
            handle = model.blocks[1].register_forward_pre_hook(
                lambda *_: model.add_adapter(peft.LoraConfig(**CONFIG), "a")
            )
            with pytest.raises(Exception, match=r"device|changed by other code"):
                forward(model, sim_device)
            handle.remove()
        else:
            model.add_adapter(peft.LoraConfig(**CONFIG), "a")
        with pytest.raises(StateError, match=r"came into .* and is on cpu"):
            forward(model, sim_device)
        reference.add_adapter(peft.LoraConfig(**CONFIG), "a")
        for each in (reference, model):
            each.to(sim_device)
            for name, value in each.named_parameters():
                if name in draw:
                    value.data.copy_(draw[name])
        assert torch.equal(forward(model, sim_device), forward(reference, sim_device))
        model.delete_adapters("a")
