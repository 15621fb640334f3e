"""`Swap.set_loras` with other files than before: each time as a model opened freshly with them."""

import gc
import os

import pytest
import torch
from cases import expect_refusal
from diffusers.hooks import FirstBlockCacheConfig
from lora_samples import adapter, forward, reference, saved, spelled, write
from safetensors.torch import load_file, save_file
from test_loras_merged import ARGS, BF16, opened

from blockswap import (
    BlockSwapArgs,
    open_experts,
    open_text_encoder,
    open_transformer,
    swap_blocks,
    swap_experts,
)
from blockswap.errors import ArgsError, BlockSwapError, GeometryError, PlanError, StateError
from blockswap.lora.request import Lora
from blockswap.plan.joint_plan import together_bytes
from blockswap.swap.entry import loaded_model
from blockswap.swap.opening import found_model
from engine_seams import collect_pools, wait_for_readers

OUTER = ("blocks.0.attn1.to_q", "blocks.3.ffn.net.2", "proj_out")
# By name: kind, layers (None: all of the samples'), rank.
MADE = {"a": ("lora", None, 4), "b": ("dora", OUTER, 2), "c": ("loha", OUTER[:2], 8)}
LISTS = ((), ("a",), ("b", "a"), ("c",), ("a", "c"))
# How often files change. Bytes are looked at in the first five of every twelve changes, so each
# list's are compared once, or twice; `make test-formats` makes a hundred changes in each store.
EVERY = os.environ.get("BLOCKSWAP_FORMATS") == "all"
SHORT, LONG = (100, 100) if EVERY else (17, 29)


@pytest.fixture
def files(tmp_path):
    found = {}
    for seed, (name, (kind, layers, rank)) in enumerate(MADE.items()):
        more = {} if layers is None else {"layers": layers}
        own = adapter(kind, seed, rank=rank, **more)
        found[name] = own, write(tmp_path / f"{name}.safetensors", own)
    return found


def loras_of(files, names):
    return [(files[name][1], 0.5) for name in names]


def wanted(folder, files, names, device):
    merged = [(files[name][0], 0.5) for name in names]
    return forward(reference(folder, merged, BF16).to(device), device, BF16)


@pytest.mark.parametrize("store", ["memory", "disk", "ram"])
def test_changes_of_files_leave_memory_as_it_was(sim_device, sim, tmp_path, files, store, request):
    """Loaded, changed and removed: memory as the plan says, outputs those of a fresh model."""
    folder = saved(tmp_path / "model", BF16)
    want = [wanted(folder, files, names, sim_device) for names in LISTS]
    assert len({tuple(output.flatten().tolist()) for output in want}) == len(LISTS)
    gc.collect()
    before = torch.accelerator.memory_allocated()
    model = opened(store, folder, BF16, sim_device, None)
    swap, flat = model.blockswap, {}
    mode = request.node.callspec.params["sim_device"]
    for change in range(LONG if (store, mode) == ("disk", "sim-lazy") else SHORT):
        at = change * 7 % len(LISTS)
        swap.set_loras(loras_of(files, LISTS[at]))
        assert model.blockswap is swap
        if change % 4 == 0:
            assert torch.equal(forward(model, sim_device, BF16), want[at]), change
        if change % 12 > 4:
            continue
        torch.accelerator.synchronize()
        gc.collect()
        held = torch.accelerator.memory_allocated() - before
        assert held == swap.plan.device_bytes, change
        found = (held, sim.counters().pinned_bytes, len(os.listdir("/proc/self/fd")))
        assert flat.setdefault(at, found) == found, change
    assert any("LoRAs are others since" in said for said in swap.plan.sentences)
    swap.close()
    del model
    gc.collect()
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() == before


@pytest.mark.parametrize("store", ["disk", "ram"])
def test_a_file_that_was_written_anew_is_another_one(sim_device, sim, tmp_path, files, store):
    """A trainer writes each step's LoRA under one name; and what was taken partly is not all."""
    folder, (_, path) = saved(tmp_path / "model", BF16), files["a"]
    model = opened(store, folder, BF16, sim_device, [(path, 0.5)])
    write(path, files["b"][0])
    model.blockswap.set_loras([(path, 0.5)])
    expected = wanted(folder, files, ("b",), sim_device)
    assert torch.equal(forward(model, sim_device, BF16), expected)
    stranger = {
        "layers.0.lora_A.weight": torch.ones(2, 8),
        "layers.0.lora_B.weight": torch.ones(8, 2),
    }
    save_file(load_file(path) | stranger, path)
    model.blockswap.set_loras([Lora(path, 0.5, partial=True)])
    with pytest.raises(GeometryError, match="2 of"):
        model.blockswap.set_loras([Lora(path, 0.5)])
    assert torch.equal(forward(model, sim_device, BF16), expected)
    model.blockswap.close()


def test_a_loaded_models_weights_are_its_own_again(sim_device, sim, tmp_path, files):
    folder = saved(tmp_path / "model", BF16)
    model = reference(folder, [], BF16)
    objects = dict(model.named_parameters())
    values = {name: parameter.clone() for name, parameter in objects.items()}
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device) as swap:
        swap.set_loras(loras_of(files, "a"))
        forward(model, sim_device, BF16)
        swap.set_loras([])
        forward(model, sim_device, BF16)
    for name, parameter in model.named_parameters():
        assert parameter is objects[name]
        assert torch.equal(parameter, values[name])


def test_on_the_cpu_from_its_file(tmp_path, files):
    folder, cpu = saved(tmp_path / "model", BF16), torch.device("cpu")
    model = open_transformer(folder, BlockSwapArgs(**ARGS), device=cpu)
    with model.blockswap as swap:
        for names in (*LISTS, ()):
            swap.set_loras(loras_of(files, names))
            assert torch.equal(forward(model, cpu, BF16), wanted(folder, files, names, cpu))
        assert swap.report() is not None


@pytest.mark.parametrize("how", ["disk", "memory"])
def test_one_expert_changes_in_the_slots_that_both_share(sim_device, sim, tmp_path, files, how):
    folder = saved(tmp_path / "model", BF16)
    first = [loras_of(files, "a")] * 2
    args = BlockSwapArgs(**ARGS)
    gc.collect()
    before = torch.accelerator.memory_allocated()
    if how == "disk":
        models = open_experts([folder] * 2, args, device=sim_device, loras=first)
    else:
        models = [reference(folder, [], BF16) for _ in range(2)]
        swap_experts(models, args, device=sim_device, loras=first)
    want = {names: wanted(folder, files, names, sim_device) for names in (("a",), ("b",), ())}

    def both(*each):
        for model, names in zip(models, each, strict=True):
            assert torch.equal(forward(model, sim_device, BF16), want[names]), each
        torch.accelerator.synchronize()
        gc.collect()
        plans = [model.blockswap.plan for model in models]
        held = torch.accelerator.memory_allocated() - before
        assert held == together_bytes(plans, 512)

    high, low = models
    both(("a",), ("a",))
    high.blockswap.set_loras(loras_of(files, "b"))
    both(("b",), ("a",))
    low.blockswap.set_loras([])
    both(("b",), ())
    with pytest.raises(PlanError, match="of a slot that models share, which has"):
        high.blockswap.set_loras(loras_of(files, "cab") * 3)
    both(("b",), ())
    for model in models:
        model.blockswap.close()


@pytest.mark.parametrize("changed", [(0,), (1,), (0, 1), (1, 0)])
def test_who_follows_is_said_of_the_new_engine(
    sim_device, sim, tmp_path, files, changed, monkeypatch
):
    """`followed_by`, where one of both is opened anew since, or both."""
    pools = collect_pools(monkeypatch)
    folder = saved(tmp_path / "model", BF16)
    models = open_experts(
        [folder] * 2, {"blocks_to_swap": 3}, device=sim_device, loras=[loras_of(files, "a")] * 2
    )
    high, low = (model.blockswap for model in models)
    high.followed_by(low, after=2)
    for number in changed:
        models[number].blockswap.set_loras([])
    for early in (False, True):
        forward(models[0], sim_device, BF16)
        wait_for_readers(pools[-1])
        assert (low.measured().counters.copies > 0) == early
    for swap in (high, low):
        swap.close()


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_what_does_not_fit_leaves_everything_as_it_was(
    sim_device, sim, tmp_path, files, store, monkeypatch
):
    folder = saved(tmp_path / "model", BF16)
    want = wanted(folder, files, "a", sim_device)
    model = opened(store, folder, BF16, sim_device, loras_of(files, "a"))
    swap, strange = model.blockswap, adapter("lora", 9)
    strange["blocks.7.attn1.to_q"] = adapter("lora", 8)["blocks.0.attn1.to_q"]
    bad = write(tmp_path / "bad.safetensors", strange)
    for given, error in (([bad], GeometryError), ([tmp_path / "none"], BlockSwapError),
                         ("a", ArgsError), ([(bad, "much")], ArgsError)):  # fmt: skip
        with pytest.raises(error):
            swap.set_loras(given)
        assert torch.equal(forward(model, sim_device, BF16), want)
    from blockswap.swap.plan_inputs.basis import Basis

    def refuse(self):
        raise PlanError("no room")

    with monkeypatch.context() as patch:  # after the model was closed for it
        patch.setattr(Basis, "plan", refuse)
        with pytest.raises(PlanError, match="no room"):
            swap.set_loras(loras_of(files, "b"))
    assert torch.equal(forward(model, sim_device, BF16), want)
    swap.set_loras([(files["a"][1], 0.25)])
    quarter = reference(folder, [(files["a"][0], 0.25)], BF16).to(sim_device)
    assert torch.equal(forward(model, sim_device, BF16), forward(quarter, sim_device, BF16))
    swap.close()
    expect_refusal(lambda: swap.set_loras([]), StateError, "is closed")


def test_what_others_hung_on_the_model_stays(sim_device, sim, tmp_path, files):
    """A cache, and a LoRA loaded beside the weights."""
    folder = saved(tmp_path / "model", BF16)
    own = files["c"][0]
    beside = {
        spelled(layer, end, "diffusers"): tensor
        for layer, ends in adapter("lora", 8).items()
        for end, tensor in ends.items()
    }

    def furnished(model):
        model.load_lora_adapter(dict(beside), adapter_name="x", prefix="transformer")
        model.enable_cache(FirstBlockCacheConfig(threshold=100.0))
        return model

    def steps(model):
        with model.cache_context("cond"):
            return [forward(model, sim_device, BF16, seed=n) for n in range(3)]

    whole = furnished(reference(folder, [(own, 0.5)], BF16)).to(sim_device)
    want = steps(whole)
    model = furnished(opened("disk", folder, BF16, sim_device, loras_of(files, "a")))
    steps(model)
    held = torch.accelerator.memory_allocated()
    for names in ("ca", "c"):
        model.blockswap.set_loras(loras_of(files, names))
    model.disable_cache()
    model.enable_cache(FirstBlockCacheConfig(threshold=100.0))
    assert all(map(torch.equal, steps(model), want))
    assert torch.accelerator.memory_allocated() <= held
    model.blockswap.close()


def test_where_no_lora_is_merged_it_says_what_to_do(tmp_path, files):
    folder = saved(tmp_path / "model", BF16)
    model = reference(folder, [], BF16)
    with swap_blocks(model, BlockSwapArgs(**ARGS), device="cpu") as swap:
        expect_refusal(
            lambda: swap.set_loras(loras_of(files, "a")), ArgsError, "used where they lie"
        )
        forward(model, torch.device("cpu"), BF16)
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16, vocab_size=64)
    T5EncoderModel(config).save_pretrained(tmp_path / "encoder")
    encoder = open_text_encoder(tmp_path / "encoder", {"blocks_to_swap": 1}, device="cpu")
    expect_refusal(
        lambda: encoder.blockswap.set_loras(loras_of(files, "a")), StateError, "load_lora_adapter"
    )
    encoder.blockswap.close()


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_an_interrupt_while_it_is_opened_anew(
    sim_device, sim, tmp_path, files, store, failures, monkeypatch
):
    """It runs as before; where that could not be opened either, it is closed as ever."""
    folder = saved(tmp_path / "model", BF16)
    model = opened(store, folder, BF16, sim_device, None)
    swap, want, calls = model.blockswap, forward(model, sim_device, BF16), []
    start = loaded_model.start_engine

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) <= failures:
            raise KeyboardInterrupt
        return start(*args, **kwargs)

    with monkeypatch.context() as patch:
        for module in (found_model, loaded_model):
            patch.setattr(module, "start_engine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            swap.set_loras(loras_of(files, "a"))
    assert swap.closed == (failures == 2)
    if not swap.closed:
        assert torch.equal(forward(model, sim_device, BF16), want)
    elif store == "memory":
        assert torch.equal(forward(model.to(sim_device), sim_device, BF16), want)
    else:
        expect_refusal(lambda: forward(model, sim_device, BF16), StateError, "is closed")
    swap.close()
    assert not hasattr(model, "blockswap")
