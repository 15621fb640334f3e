"""LoRAs loaded into a model that is swapped or opened already: as into one that is not."""

import gc

import pytest
import torch
from test_beside_diffusers import WIDTH, forward, frames, tiny_pipeline, tiny_transformer

from blockswap import BlockSwapArgs, open_experts, open_transformer, swap_blocks
from blockswap.errors import CheckpointError, StateError

peft = pytest.importorskip("peft")

ARGS = BlockSwapArgs(blocks="0-2", prefetch_blocks=1)
STORES = ["ram", "disk"]
LAYERS = ("blocks.0.attn1.to_q", "blocks.3.attn2.to_out.0", "blocks.1.ffn.net.2", "proj_out")


def lora(seed, dtype=torch.float32, layers=LAYERS):
    """A LoRA of rank 4 on streamed blocks, a resident, and what lies outside of them."""
    draw, model, found = torch.Generator().manual_seed(seed), tiny_transformer(), {}
    for layer in layers:
        out, inside = model.get_submodule(layer).weight.shape
        for half, shape in (("A", (4, inside)), ("B", (out, 4))):
            values = torch.randn(shape, generator=draw).to(dtype)
            found[f"transformer.{layer}.lora_{half}.weight"] = values
    return found


def loaded(model, seed, name, dtype=torch.float32, **options):
    model.load_lora_adapter(lora(seed, dtype), adapter_name=name, prefix="transformer", **options)


def whole(device, dtype=torch.float32, folder=None):
    """Not swapped; from `folder` in the dtypes in which diffusers computes with its file."""
    if folder is None:
        return tiny_transformer().to(dtype).to(device)
    return type(tiny_transformer()).from_pretrained(folder, torch_dtype=dtype).to(device)


def swapped(store, device, tmp_path, dtype=torch.float32):
    model = tiny_transformer().to(dtype)
    if store == "ram":
        swap_blocks(model, ARGS, device=device)
        return model
    model.save_pretrained(tmp_path)
    return open_transformer(tmp_path, ARGS, device=device)


def run(model, device, dtype):
    if dtype is torch.float32:
        return forward(model, device)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        return model(
            hidden_states=torch.randn(1, 16, 3, 8, 8, generator=draw).to(device, dtype),
            timestep=torch.full((1,), 500, device=device),
            encoder_hidden_states=torch.randn(1, 5, WIDTH, generator=draw).to(device, dtype),
            return_dict=False,
        )[0].cpu()


@pytest.mark.parametrize("low", [True, False], ids=["from the file", "copied"])
@pytest.mark.parametrize(
    ("dtype", "of_lora"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float16)],
    ids=["fp32", "fp16 into bf16"],
)
@pytest.mark.parametrize("store", STORES)
def test_loaded_between_forwards_chosen_and_taken_out(
    sim_device, sim, tmp_path, store, dtype, of_lora, low
):
    other = swapped(store, sim_device, tmp_path, dtype)
    one = whole(sim_device, dtype, tmp_path if store == "disk" else None)

    def same(what):
        want, got = run(one, sim_device, dtype), run(other, sim_device, dtype)
        assert torch.equal(want, got), what
        return want

    plain = same("nothing loaded yet")
    for model in (one, other):
        loaded(model, 1, "a", of_lora, low_cpu_mem_usage=low)
    if low:
        one.to(sim_device)
    assert not torch.equal(same("one LoRA"), plain)
    for model in (one, other):
        loaded(model, 2, "b", of_lora, low_cpu_mem_usage=low)
    if low:
        one.to(sim_device)
    for names, strengths in (
        (["a", "b"], [1.0, 1.0]),
        (["a", "b"], [0.5, -0.25]),
        (["b"], [1.5]),
    ):
        for model in (one, other):
            model.set_adapters(names, strengths)
        same(f"{names} at {strengths}")
    for model in (one, other):
        model.delete_adapters("b")
    same("one taken out again")
    for model in (one, other):
        model.unload_lora()
    assert torch.equal(same("none"), plain)
    other.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_its_bytes_are_all_that_comes_on_top_of_the_plan(sim_device, sim, tmp_path, store):
    gc.collect()
    before = torch.accelerator.memory_allocated()
    model = swapped(store, sim_device, tmp_path)
    forward(model, sim_device)
    loaded(model, 1, "a")
    forward(model, sim_device)
    torch.accelerator.synchronize()
    own = sum(-(-p.nbytes // 512) * 512 for n, p in model.named_parameters() if "lora_" in n)
    assert own > 0
    swap = model.blockswap
    assert torch.accelerator.memory_allocated() - before == swap.plan.device_bytes + own
    assert any("a LoRA was loaded" in sentence for sentence in swap.plan.sentences)
    model.unload_lora()
    forward(model, sim_device)
    gc.collect()
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() - before == swap.plan.device_bytes, "all is back"
    swap.close()
    assert "load_lora_adapter" not in vars(model)
    gc.collect()
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() == before


def test_after_closing_the_model_has_it_in_host_memory(sim_device, sim, tmp_path):
    one, other = tiny_transformer(), swapped("ram", sim_device, tmp_path)
    loaded(one, 1, "a")
    loaded(other, 1, "a")
    forward(other, sim_device)
    other.blockswap.close()
    cpu = torch.device("cpu")
    assert torch.equal(forward(other, cpu), forward(one, cpu))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("lacks", ["biases", "a second factor"])
def test_what_a_lora_has_for_some_layers_alone_is_zero_elsewhere(
    sim_device, sim, tmp_path, store, lacks
):
    """In bf16: what the library casts it casts by layer, those that lack nothing."""
    given = lora(1)
    layer = f"transformer.{LAYERS[0]}.lora_B"
    if lacks == "biases":
        given[f"{layer}.bias"] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    else:
        del given[f"{layer}.weight"]
    other = swapped(store, sim_device, tmp_path, torch.bfloat16)
    one = whole(sim_device, torch.bfloat16, tmp_path if store == "disk" else None)
    for model in (one, other):
        model.load_lora_adapter(dict(given), adapter_name="a", prefix="transformer")
    expected = run(one, sim_device, torch.bfloat16)
    assert torch.equal(run(other, sim_device, torch.bfloat16), expected)
    other.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_a_lora_without_a_first_factor_is_refused_and_gone(sim_device, sim, tmp_path, store):
    """The library would begin it at random, each time otherwise."""
    given = lora(1)
    del given[f"transformer.{LAYERS[0]}.lora_A.weight"]
    model = swapped(store, sim_device, tmp_path)
    plain = forward(model, sim_device)
    with pytest.raises(CheckpointError, match="its other factor is there"):
        model.load_lora_adapter(given, adapter_name="a", prefix="transformer")
    assert torch.equal(forward(model, sim_device), plain)
    loaded(model, 1, "a")
    assert not torch.equal(forward(model, sim_device), plain)
    model.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_hotswap(sim_device, sim, tmp_path, store):
    one, other = whole(sim_device), swapped(store, sim_device, tmp_path)
    for model in (one, other):
        loaded(model, 1, "a", low_cpu_mem_usage=False)
        forward(model, sim_device)
        loaded(model, 3, "a", hotswap=True)
    assert torch.equal(forward(one, sim_device), forward(other, sim_device))
    other.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_through_a_pipeline(device, tmp_path, store):
    """`pipe.load_lora_weights` after the swap, on the CPU and on an accelerator."""
    want = {}
    for swap in (False, True):
        pipe = tiny_pipeline()
        if swap and store == "disk":
            pipe.transformer.save_pretrained(tmp_path)
            pipe.transformer = open_transformer(tmp_path, ARGS, device=device)
        elif swap:
            swap_blocks(pipe.transformer, ARGS, device=device)
        pipe.to(device)
        pipe.load_lora_weights(lora(1), adapter_name="a")
        first = frames(pipe, device)
        pipe.set_adapters(["a"], [0.5])
        second = frames(pipe, device)
        pipe.unload_lora_weights()
        results = (first, second, frames(pipe, device))
        assert not torch.equal(first, second)
        want.setdefault("frames", results)
        assert all(map(torch.equal, want["frames"], results))
        if swap:
            pipe.transformer.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_what_is_wrong_with_a_lora_is_the_librarys_to_say_and_nothing_is_left(
    device, tmp_path, store
):
    model = swapped(store, device, tmp_path)
    want = forward(model, device)
    wrong = {k: v[:, :-1] if "lora_A" in k else v for k, v in lora(1).items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_lora_adapter(wrong, adapter_name="a", prefix="transformer")
    assert torch.equal(forward(model, device), want)
    loaded(model, 1, "a")
    assert not torch.equal(forward(model, device), want)
    model.blockswap.close()


@pytest.mark.parametrize("store", STORES)
def test_loading_what_the_swap_placed_stays_refused(device, tmp_path, store):
    model = swapped(store, device, tmp_path)
    loaded(model, 1, "a")
    weights = tiny_transformer().state_dict()
    base = {"blocks.0.attn1.to_q.base_layer.weight": weights["blocks.0.attn1.to_q.weight"]}
    for given in (weights, base):
        with pytest.raises(StateError, match="weights were to be loaded"):
            model.load_state_dict(given, strict=False)
    if store == "disk" or device.type != "cpu":  # else the blocks are used where they lie
        with pytest.raises(StateError, match="fused into"):
            model.fuse_lora()
    model.blockswap.close()


def test_one_on_each_expert(sim_device, sim, tmp_path):
    """Wan 2.2 as most people run it: two experts from their files, a LoRA of its own on each."""
    folders, wholes = [tmp_path / "high", tmp_path / "low"], []
    for seed, folder in enumerate(folders):
        model = tiny_transformer()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(seed * 0.01)
        model.save_pretrained(folder)
        loaded(model, seed + 1, "fast")
        wholes.append(model.to(sim_device))
    opened = open_experts(folders, ARGS, device=sim_device)
    for seed, model in enumerate(opened):
        loaded(model, seed + 1, "fast")
    for _ in range(2):
        for one, other in zip(wholes, opened, strict=True):
            for _ in range(2):
                assert torch.equal(forward(one, sim_device), forward(other, sim_device))
    for model in opened:
        model.blockswap.close()
