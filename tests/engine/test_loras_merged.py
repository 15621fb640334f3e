"""`loras=`: merged on the device when a block arrives, equal to the last bit to PEFT's merge."""

import gc

import pytest
import torch
from cases import expect_refusal
from lora_samples import KINDS, SPELLINGS, adapter, forward, reference, saved, write

from blockswap import BlockSwapArgs, open_experts, open_transformer, swap_blocks, swap_experts
from blockswap.errors import ArgsError, GeometryError, StateError
from pairs import pairwise

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# stored dtype of the model, its compute dtype, the LoRA's dtype
DTYPES = {
    "fp32": (FP32, FP32, FP32),
    "bf16": (BF16, BF16, FP16),
    "fp32 to bf16": (FP32, BF16, BF16),
}
ARGS = {"blocks": "0-2", "prefetch_blocks": 1}


def opened(store, folder, dtype, device, loras, **more):
    """A swapped model of `folder`, whose units rest in memory, in its file, or in RAM from it."""
    if store == "memory":
        model = reference(folder, [], dtype)
        swap_blocks(model, BlockSwapArgs(**ARGS), device=device, loras=loras, **more)
        return model
    args = {**ARGS, **({"ram_budget": "1GiB"} if store == "ram" else {})}
    return open_transformer(folder, BlockSwapArgs(**args), device=device, loras=loras, dtype=dtype)


WHERE = [(mode, store) for mode in ("cpu", "sim-eager", "sim-lazy")
         for store in ("memory", "disk", "ram") if mode != "cpu" or store == "disk"]  # fmt: skip
CASES = pairwise(
    where=WHERE, kind=KINDS, spelling=[s for s in SPELLINGS if s != "peft"], dtypes=list(DTYPES),
    second=(False, True),
)  # fmt: skip


@pytest.mark.parametrize(
    ("device", "case"),
    [(case["where"][0], case) for case in CASES],
    indirect=["device"],
    ids=lambda case: case if isinstance(case, str) else "-".join(map(str, case.values())),
)
def test_equal_to_pefts_merge(device, tmp_path, case):
    store = case["where"][1]
    base, dtype, of_lora = DTYPES[case["dtypes"]]
    folder = saved(tmp_path / "model", base if store != "memory" else dtype)
    wanted = [(adapter(case["kind"], 3), 0.7)]
    loras = [(write(tmp_path / "a.safetensors", wanted[0][0], case["spelling"], of_lora), 0.7)]
    if case["second"]:
        wanted.append((adapter("lora", 4, rank=2), -0.3))
        loras.append((write(tmp_path / "b.safetensors", wanted[1][0], "kohya", of_lora), -0.3))
    want = forward(reference(folder, wanted, dtype, of_lora).to(device), device, dtype)
    plain = forward(reference(folder, [], dtype).to(device), device, dtype)
    model = opened(store, folder, dtype, device, loras)
    assert model.blockswap.plan.streamed == ("blocks.0", "blocks.1", "blocks.2")
    for _ in range(2):
        assert torch.equal(forward(model, device, dtype), want)
    assert not torch.equal(want, plain)
    model.blockswap.close()


DIFFERENCES = {
    "blocks.0.attn2.norm_k.weight": "w_norm", "blocks.1.norm2.bias": "b_norm",
    "blocks.2.norm2.weight": "diff", "blocks.0.ffn.net.2.bias": "diff_b",
    "blocks.2.scale_shift_table": "diff", "patch_embedding.bias": "diff_b",
}  # fmt: skip


def test_what_is_no_linear_layers_weight(device, tmp_path):
    """The patch embedding's convolution, and differences of norms, biases and tables."""
    draw = torch.Generator().manual_seed(5)
    shapes = {"lora_A.weight": (4, 16, 1, 2, 2), "lora_B.weight": (64, 4, 1, 1, 1)}
    conv = {end: torch.randn(shape, generator=draw) * 0.2 for end, shape in shapes.items()}
    wanted = {**adapter("alpha", 3), "patch_embedding": {**conv, "alpha": torch.tensor(3.0)}}
    folder = saved(tmp_path / "model", FP32)
    whole = reference(folder, [(wanted, 0.7)], FP32)
    differences = {}
    with torch.no_grad():
        for name, end in DIFFERENCES.items():
            own = whole.get_parameter(name)
            added = torch.randn(own.shape, generator=draw) * 0.2
            own += added * 0.7
            layer = name.removesuffix(".weight").removesuffix(".bias")
            differences.setdefault(layer, {})[end] = added
    path = write(tmp_path / "a.safetensors", {**wanted, **differences, "patch_embedding": {
        **wanted["patch_embedding"], **differences["patch_embedding"]}})  # fmt: skip
    want = forward(whole.to(device), device)
    model = opened("disk", folder, FP32, device, [(path, 0.7)])
    for _ in range(2):
        assert torch.equal(forward(model, device), want)
    model.blockswap.close()


@pytest.mark.parametrize("store", ["memory", "disk", "ram"])
def test_bytes_are_the_plans_to_the_byte(sim_device, sim, tmp_path, store):
    """Factors, decode buffer and scratch: all of it is in the plan; nothing comes on top."""
    folder = saved(tmp_path / "model", BF16)
    path = write(tmp_path / "a.safetensors", adapter("dora", 3), "original", BF16)
    gc.collect()
    before = torch.accelerator.memory_allocated()
    model = opened(store, folder, BF16, sim_device, [(path, 1.0)])
    swap = model.blockswap
    plain = opened(store, folder, BF16, sim_device, None)
    without = plain.blockswap.plan
    plain.blockswap.close()
    del plain
    gc.collect()
    assert torch.accelerator.memory_allocated() - before == swap.plan.device_bytes
    for _ in range(2):
        forward(model, sim_device, BF16)
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() - before == swap.plan.device_bytes
    assert swap.plan.decode_bytes > without.decode_bytes
    factors = sum(
        t.nbytes // 2 for layer, ends in adapter("dora", 3).items() for end, t in ends.items()
        if layer.startswith(("blocks.0", "blocks.1", "blocks.2")) and end != "alpha"
    )  # fmt: skip
    more = swap.plan.copied_bytes_per_forward - without.copied_bytes_per_forward
    assert factors <= more <= factors + 64 * 4096, "the factors move as they are stored"
    swap.close()
    gc.collect()
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() == before


def test_a_loaded_models_own_weights_stay_as_they_are(sim_device, sim, tmp_path):
    folder = saved(tmp_path / "model", BF16)
    model = reference(folder, [], BF16)
    want = {name: value.clone() for name, value in model.state_dict().items()}
    path = write(tmp_path / "a.safetensors", adapter("lora", 3))
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device, loras=[path]):
        forward(model, sim_device, BF16)
    got = model.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in want.items())


@pytest.mark.parametrize(("blocks", "saves"), [("0-2", False), ("3", False), ("", True)])
def test_a_state_dict_is_what_computes_or_refused(sim_device, sim, tmp_path, blocks, saves):
    """Never some weights with LoRAs and others without."""
    folder = saved(tmp_path / "model", BF16)
    own = adapter("lora", 3)
    path = write(tmp_path / "a.safetensors", own)
    whole = reference(folder, [(own, 1.0)], BF16).state_dict()
    model = reference(folder, [], BF16)
    args = BlockSwapArgs(blocks=blocks) if blocks else BlockSwapArgs(blocks_to_swap=0)
    with swap_blocks(model, args, device=sim_device, loras=[path]):
        if saves:
            got = model.state_dict()
            assert all(torch.equal(value, got[name].cpu()) for name, value in whole.items())
        else:
            expect_refusal(model.state_dict, StateError, "LoRAs", "close the swap")
            expect_refusal(lambda: model.save_pretrained(tmp_path / "b"), StateError, "LoRAs")


@pytest.mark.parametrize("loaded", [True, False])
def test_each_expert_has_its_own(sim_device, sim, tmp_path, loaded):
    folders = [saved(tmp_path / str(n), BF16, seed=n) for n in range(2)]
    kinds = ("lora", "loha")
    wanted = [adapter(kind, n) for n, kind in enumerate(kinds)]
    loras = [[(write(tmp_path / f"{n}.safetensors", wanted[n]), 0.5)] for n in range(2)]
    want = [
        forward(reference(folder, [(own, 0.5)], BF16).to(sim_device), sim_device, BF16)
        for folder, own in zip(folders, wanted, strict=True)
    ]
    args = BlockSwapArgs(**ARGS)
    if loaded:
        models = [reference(folder, [], BF16) for folder in folders]
        swap_experts(models, args, device=sim_device, loras=loras)
    else:
        models = open_experts(folders, args, device=sim_device, loras=loras)
    for _ in range(2):
        for model, output in zip(models, want, strict=True):
            assert torch.equal(forward(model, sim_device, BF16), output)
    for model in models:
        model.blockswap.close()
    expect_refusal(
        lambda: open_experts(folders, args, device=sim_device, loras=[]),
        ArgsError, "was given for 2 models",
    )  # fmt: skip


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_blocks_that_change_residency_keep_their_loras(sim_device, capacity, tmp_path, store):
    """Blocks leave for a forward that needs more, and come back when others need less."""
    folder = saved(tmp_path / "model", BF16)
    own = adapter("lora", 3, layers=[f"blocks.{n}.attn1.to_q" for n in range(4)])
    path = write(tmp_path / "a.safetensors", own)
    whole = reference(folder, [(own, 1.0)], BF16).to(sim_device)
    frames = (3, 21, *[3] * 12)
    want = [forward(whole, sim_device, BF16, frames=count) for count in frames]
    room = int(sum(p.nbytes for p in whole.parameters()) * 2.6)
    del whole
    capacity(room)
    if store == "memory":
        model = reference(folder, [], BF16)
        swap_blocks(model, BlockSwapArgs(), device=sim_device, loras=[path])
    else:
        model = open_transformer(folder, BlockSwapArgs(), device=sim_device, loras=[path])
    residents = []
    for count, output in zip(frames, want, strict=True):
        residents.append(len(model.blockswap.plan.residents))
        assert torch.equal(forward(model, sim_device, BF16, frames=count), output), residents
    residents.append(len(model.blockswap.plan.residents))
    least = min(residents)
    assert residents[0] > least, "blocks left"
    assert residents[-1] > least, "and came back"
    model.blockswap.close()


def test_on_the_cpu_a_loaded_model_is_told_what_to_do(tmp_path):
    folder = saved(tmp_path / "model", FP32)
    path = write(tmp_path / "a.safetensors", adapter("lora", 3))
    model = reference(folder, [])
    expect_refusal(
        lambda: swap_blocks(model, BlockSwapArgs(**ARGS), device="cpu", loras=[path]),
        ArgsError, "used where they lie", "open_transformer",
    )  # fmt: skip
    assert not hasattr(model, "blockswap")


def test_under_autocast_factors_are_multiplied_in_fp32(tmp_path):
    folder = saved(tmp_path / "model", FP32)
    own = adapter("loha", 3)
    path = write(tmp_path / "a.safetensors", own)
    whole = reference(folder, [(own, 1.0)])
    with torch.autocast("cpu", BF16):
        want = forward(whole, torch.device("cpu"))
        model = open_transformer(folder, BlockSwapArgs(**ARGS), device="cpu", loras=[path])
        assert torch.equal(forward(model, torch.device("cpu")), want)
    model.blockswap.close()


def test_what_does_not_fit_is_refused_and_nothing_is_open(tmp_path):
    folder = saved(tmp_path / "model", FP32)
    own = adapter("lora", 3)
    own["blocks.7.attn1.to_q"] = adapter("lora", 4)["blocks.0.attn1.to_q"]
    path = write(tmp_path / "a.safetensors", own)
    expect_refusal(
        lambda: open_transformer(folder, BlockSwapArgs(**ARGS), device="cpu", loras=[path]),
        GeometryError, "2 of 16 tensors", "diffusion_model.blocks.7.self_attn.q.lora_A.weight",
    )  # fmt: skip
