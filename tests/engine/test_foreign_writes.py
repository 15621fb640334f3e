"""Whatever other code does to weights of a swapped model: refused by name, each time, or right."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_beside_diffusers import WIDTH, forward, tiny_transformer
from torch import nn

from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.errors import StateError

peft = pytest.importorskip("peft")

ARGS = {"blocks": "0-2", "prefetch_blocks": 1}
STORES = ["ram", "disk"]
LORA = {"r": 4, "init_lora_weights": False, "target_modules": ["to_q", "to_v"]}


def swapped(store: str, device: torch.device, tmp_path: Any) -> nn.Module:
    model = tiny_transformer()
    if store == "ram":
        swap_blocks(model, BlockSwapArgs(**ARGS), device=device)
        return model
    model.save_pretrained(tmp_path)
    return open_transformer(tmp_path, BlockSwapArgs(**ARGS), device=device)


def ones(device: torch.device) -> torch.Tensor:
    return torch.ones(WIDTH, WIDTH, device=device)


def parameter(device: torch.device) -> nn.Parameter:
    return nn.Parameter(ones(device), requires_grad=False)


def q(model: nn.Module, block: int = 0) -> Any:
    return model.blocks[block].attn1.to_q


def set_data(model: nn.Module, device: torch.device, change: Callable[[torch.Tensor], Any]) -> None:
    weight = q(model).weight
    weight.data = change(weight.data)


REPLACED: dict[str, Callable[[Any, torch.device], Any]] = {
    "a new parameter": lambda m, d: setattr(q(m), "weight", parameter(d)),
    "one of another block": lambda m, d: setattr(q(m), "weight", q(m, 1).weight),
    "no bias": lambda m, d: setattr(q(m), "bias", None),
    "loaded by assignment": lambda m, d: q(m).load_state_dict(
        {"weight": ones(d), "bias": torch.ones(WIDTH, device=d)}, assign=True
    ),
    "swapped tensors": lambda m, d: torch.utils.swap_tensors(q(m).weight, parameter(d)),
}
LOOKED_AT_OTHERWISE: dict[str, Callable[[Any, torch.device], Any]] = {
    "transposed": lambda m, d: set_data(m, d, torch.Tensor.t),
    "expanded": lambda m, d: set_data(m, d, lambda w: w[:1].expand(w.shape)),
    "cut": lambda m, d: set_data(m, d, lambda w: w[:-1]),
    "written": lambda m, d: q(m).weight.detach().add_(1),
    "new data": lambda m, d: set_data(m, d, torch.zeros_like),
}


def refused_for_good(model: nn.Module, device: torch.device, match: str) -> None:
    for _ in range(3):  # not once only
        with pytest.raises(StateError, match=match):
            forward(model, device)


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("store", STORES)
def test_what_was_replaced_between_forwards(sim_device, sim, tmp_path, store, what):
    model = swapped(store, sim_device, tmp_path)
    forward(model, sim_device)
    REPLACED[what](model, sim_device)
    hanging = q(model).weight, q(model).bias
    refused_for_good(model, sim_device, r"blocks.0.attn1.to_q.(weight|bias) was changed")
    assert q(model).weight is hanging[0], "it is still theirs"
    assert q(model).bias is hanging[1]
    model.blockswap.close()


@pytest.mark.parametrize("what", LOOKED_AT_OTHERWISE)
def test_what_is_looked_at_otherwise(sim_device, sim, tmp_path, what):
    model = swapped("ram", sim_device, tmp_path)
    model.requires_grad_(False)
    forward(model, sim_device)
    torch.accelerator.synchronize()  # the copies that run ahead read what is written to
    LOOKED_AT_OTHERWISE[what](model, torch.device("cpu"))
    refused_for_good(model, sim_device, "was changed by other code")
    model.blockswap.close()


INSIDE: dict[str, Callable[[Any, torch.device], Any]] = {
    **{k: v for k, v in REPLACED.items() if k != "one of another block"},
    "written": lambda m, d: q(m).weight.add_(1),
    "new data": lambda m, d: setattr(q(m).weight, "data", ones(d)),
    "loaded": lambda m, d: q(m).load_state_dict(
        {"weight": ones(d), "bias": torch.ones(WIDTH, device=d)}
    ),
    "cast to and fro": lambda m, d: q(m).half().float(),
    "parametrized": lambda m, d: nn.utils.parametrizations.weight_norm(q(m)),
}


@pytest.mark.parametrize("what", INSIDE)
@pytest.mark.parametrize("store", STORES)
def test_what_a_forward_does_to_its_own_block(sim_device, sim, tmp_path, store, what):
    """Leaving would take it away: said at once, and never computed past."""
    model = swapped(store, sim_device, tmp_path)
    forward(model, sim_device)

    def hook(*_: Any) -> None:
        handle.remove()
        with torch.no_grad():
            INSIDE[what](model, sim_device)

    handle = model.blocks[0].register_forward_pre_hook(hook)
    refused_for_good(model, sim_device, r"was changed inside the forward of blocks.0")
    model.blockswap.close()


@pytest.mark.parametrize("name", ["proj_out.weight", "blocks.3.attn1.to_q.weight"])
def test_who_kept_a_weight_from_before_the_swap(sim_device, sim, name):
    model = tiny_transformer()
    kept = dict(model.named_parameters())[name]
    swap = swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device)
    forward(model, sim_device)
    kept.grad = torch.ones_like(kept)
    torch.optim.SGD([kept], lr=0.1).step()
    refused_for_good(model, sim_device, f"{name} was changed by other code")
    swap.close()


@pytest.mark.parametrize("way", ["merge_and_unload", "merge, then unload"])
def test_an_adapter_that_merged_and_left(sim_device, sim, way):
    model = tiny_transformer()
    if way != "merge_and_unload":
        model.add_adapter(peft.LoraConfig(**LORA), "a")
    swap = swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device)
    forward(model, sim_device)
    torch.accelerator.synchronize()
    if way == "merge_and_unload":
        peft.get_peft_model(model, peft.LoraConfig(**LORA)).merge_and_unload()
    else:
        for layer in model.modules():
            if hasattr(layer, "merged_adapters"):
                layer.merge()
        model.unload_lora()
    refused_for_good(model, sim_device, "merged into .* load the model anew")
    swap.close()


def test_an_adapter_that_writes_its_base_when_it_comes(sim_device, sim):
    """OLoRA takes its part out of the base weight, through `.data`: slots know nothing of it."""
    config = peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights="olora")
    whole, model = tiny_transformer(), tiny_transformer()
    whole.add_adapter(config, "a")
    want = forward(whole.to(sim_device), sim_device)
    with swap_blocks(model, BlockSwapArgs(blocks="0-3"), device=sim_device):
        forward(model, sim_device)
        torch.accelerator.synchronize()
        model.add_adapter(config, "a")
        model.to(sim_device)
        for _ in range(2):
            assert torch.equal(forward(model, sim_device), want)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "other values": lambda m: m._apply(lambda t: t * 2),
    "no values": lambda m: m.to_empty(device="cpu"),
    "shared": lambda m: m.share_memory(),
    "another format": lambda m: m.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["model", "block"])
def test_functions_that_do_more_than_move(device, tmp_path, change, where):
    model = swapped("disk", device, tmp_path)
    want = forward(model, device)
    with pytest.raises(StateError, match="while its blocks are swapped"):
        CHANGES[change](model if where == "model" else model.blocks[1])
    assert torch.equal(forward(model, device), want)
    model.blockswap.close()


@pytest.mark.parametrize("way", ["jit", "fx"])
@pytest.mark.parametrize("store", STORES)
def test_recordings_would_keep_slots(sim_device, sim, tmp_path, store, way):
    from torch.fx.experimental.proxy_tensor import make_fx

    model = swapped(store, sim_device, tmp_path)
    want = forward(model, sim_device)
    inputs = (
        torch.randn(1, 16, 3, 8, 8, device=sim_device),
        torch.full((1,), 500, device=sim_device),
        torch.randn(1, 5, WIDTH, device=sim_device),
    )

    def run(h: torch.Tensor, t: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(
            hidden_states=h, timestep=t, encoder_hidden_states=e, return_dict=False
        )[0]
        return out

    record = torch.jit.trace if way == "jit" else lambda f, x: make_fx(f)(*x)
    with torch.no_grad(), pytest.raises(StateError, match="record"):
        record(run, inputs)
    assert torch.equal(forward(model, sim_device), want)
    model.blockswap.close()


def test_gradients_switched_on_inside_a_block(sim_device, sim, tmp_path):
    model = swapped("ram", sim_device, tmp_path)
    inner = model.blocks[0].forward

    def forward_with_grad(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.enable_grad():
            out: torch.Tensor = inner(*args, **kwargs)
            return out * torch.ones((), device=sim_device, requires_grad=True)

    model.blocks[0].forward = forward_with_grad
    with pytest.raises(StateError, match="gradients were switched on"):
        forward(model, sim_device)
    model.blockswap.close()


@pytest.mark.parametrize("who", ["a thread", "the forward itself"])
@pytest.mark.parametrize("module", ["patch_embedding", "proj_out"])
@pytest.mark.parametrize("store", STORES)
def test_closing_between_two_blocks(sim_device, sim, tmp_path, store, module, who):
    model = swapped(store, sim_device, tmp_path)
    want, said = forward(model, sim_device), []

    def close() -> None:
        with pytest.raises(StateError, match="under way") as caught:
            model.blockswap.close()
        said.append(caught.value)

    def hook(*_: Any) -> None:
        if who == "a thread":
            thread = threading.Thread(target=close)
            thread.start()
            thread.join()
        else:
            close()

    handle = getattr(model, module).register_forward_pre_hook(hook)
    assert torch.equal(forward(model, sim_device), want)
    assert len(said) == 1
    handle.remove()
    model.blockswap.close()


def test_saving_inside_a_forward(sim_device, sim, tmp_path):
    model = swapped("ram", sim_device, tmp_path)
    handle = model.blocks[1].attn1.register_forward_pre_hook(lambda *_: model.state_dict())
    with pytest.raises(StateError, match=r"weights of blocks.1 were asked for inside its forward"):
        forward(model, sim_device)
    handle.remove()
    forward(model, sim_device)
    model.state_dict()
    model.blockswap.close()


def test_data_given_to_a_weight_that_is_in_its_file(device, tmp_path):
    model = swapped("disk", device, tmp_path)
    with pytest.raises(StateError, match=r"blocks.0.attn1.to_q.weight was used"):
        q(model).weight.data = torch.ones(WIDTH, WIDTH)
    model.blockswap.close()


def test_replaced_data_of_what_stays_is_told_at_closing(sim_device, sim):
    model = tiny_transformer()
    swap = swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device)
    for weight in (q(model, 3).weight, model.proj_out.weight):
        weight.data = torch.ones_like(weight.data)
    forward(model, sim_device)
    with pytest.warns(UserWarning, match="the change is lost") as caught:
        swap.close()
    assert len(caught) == 2


def test_weights_that_count_no_writes_are_told(sim_device, sim):
    with torch.inference_mode():
        model = tiny_transformer()
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device) as swap:
        forward(model, sim_device)
        assert any("inference mode, which counts no writes" in s for s in swap.measured().sentences)
