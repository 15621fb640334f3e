"""What users do to a swapped pipeline between its calls and during them is never lost or wrong."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from tiny_families import FAMILIES, built, made

from blockswap import swap_blocks, swap_pipeline
from blockswap.errors import ArgsError, PlanError, StateError

eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
MIB = 2**20


def latents(pipe: Any, **changes: Any) -> torch.Tensor:
    return made(pipe, "ltx", output_type="latent", num_inference_steps=1, **changes)


def fuse(pipe: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v"]
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    )
    pipe.transformer.fuse_lora()


def write_data(pipe: Any) -> None:
    pipe.transformer.proj_in.weight.data.mul_(2)


def replace_weight(pipe: Any) -> None:
    weight = pipe.transformer.proj_in.weight
    pipe.transformer.proj_in.weight = torch.nn.Parameter(weight.detach() * 2, requires_grad=False)


@eager
@pytest.mark.parametrize(
    ("edit", "share"), [(fuse, None), (fuse, 0.7), (write_data, None), (replace_weight, 0.7)]
)
def test_weights_that_are_written_between_calls(
    edit: Callable[[Any], None], share: float | None, sim_device: torch.device
) -> None:
    """The denoiser was the last on the device: it is not there any more when the call is over."""
    pipe = built("ltx")
    edit(pipe)
    expected = latents(pipe.to(sim_device))
    pipe = built("ltx")
    size = sum(weight.nbytes for weight in pipe.transformer.parameters())
    budget = None if share is None else int(size * share) + 2 * MIB
    with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
        assert not torch.equal(latents(pipe), expected)
        edit(pipe)
        assert torch.equal(latents(pipe), expected)
        assert ("streamed" in swap.report()) is (share is not None)
    assert torch.equal(latents(pipe.to(sim_device)), expected), "closed"


@eager
def test_a_lora_that_is_fused_in_a_callback(sim_device: torch.device) -> None:
    """It comes into the model on the device, and leaves with it."""

    def fuse_first(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 0:
            fuse(pipe)
        return {}

    how = {"num_inference_steps": 2, "output_type": "latent", "callback_on_step_end": fuse_first}
    expected = made(built("ltx").to(sim_device), "ltx", **how)
    pipe = built("ltx")
    with swap_pipeline(pipe, device=sim_device):
        assert torch.equal(made(pipe, "ltx", **how), expected)
    assert {weight.device.type for weight in pipe.transformer.parameters()} == {"cpu"}


@eager
def test_one_call_at_a_time(sim_device: torch.device) -> None:
    expected = latents(built("ltx").to(sim_device))
    pipe, found = built("ltx"), []
    with swap_pipeline(pipe, device=sim_device) as swap:

        def beside(*_: Any) -> dict[str, Any]:
            worker = threading.Thread(target=lambda: found.append(outcome(latents, pipe)))
            worker.start()
            worker.join()
            found.append(outcome(swap.close))
            return {}

        assert torch.equal(latents(pipe, callback_on_step_end=beside), expected)
        assert "another thread runs it" in found[0]
        assert "was to be closed while its LTXPipeline runs" in found[1]
        planned = FAMILIES["ltx"].call
        worker = threading.Thread(target=lambda: found.append(swap.plan_call("a ball", **planned)))
        worker.start()
        worker.join()
        assert found[2].fits
        assert torch.equal(latents(pipe), expected)


def outcome(call: Callable[..., Any], *args: Any) -> str:
    try:
        return str(call(*args))
    except StateError as error:
        return str(error)


@eager
def test_what_a_swapped_pipeline_refuses(sim_device: torch.device) -> None:
    pipe, other = built("ltx"), built("ltx")
    with pytest.raises(ArgsError, match="tiled='yes'"):
        swap_pipeline(pipe, device=sim_device, tiled="yes")  # type: ignore[arg-type]
    with pytest.raises(ArgsError, match="workload='720p' was given, which says nothing"):
        swap_pipeline(pipe, device=sim_device, workload="720p")
    with swap_pipeline(pipe, device=sim_device):
        for copied in (copy.deepcopy, pickle.dumps):
            for part in (pipe, pipe.transformer):
                with pytest.raises(StateError, match="a copy of this"):
                    copied(part)
        with pytest.raises(StateError, match="another way to offload"):
            pipe.transformer.enable_group_offload(onload_device=sim_device)
        with pytest.raises(StateError, match="was to be moved or cast"):
            pipe.to(torch.device(sim_device.type, 1))
        for maker in (type(pipe), diffusers.LTXImageToVideoPipeline):
            with pytest.raises(StateError, match=r"to be made of .*this LTXPipeline \(from_pipe\)"):
                maker.from_pipe(pipe)
        mine, pipe.transformer = pipe.transformer, other.transformer
        with pytest.raises(StateError, match="transformer of this LTXPipeline is another model"):
            latents(pipe)
        pipe.transformer = mine
        with swap_blocks(mine, {"blocks_to_swap": 2}, device=sim_device):
            with pytest.raises(StateError, match="is swapped already: close that swap first"):
                latents(pipe)
        expected = latents(pipe)
    assert torch.equal(latents(copy.deepcopy(pipe).to(sim_device)), expected), "closed"


@eager
def test_pipelines_that_share_models_are_closed_the_last_one_first(
    sim_device: torch.device,
) -> None:
    pipe, other = built("ltx"), built("ltx")
    expected = latents(built("ltx").to(sim_device))
    other.text_encoder, other.vae = pipe.text_encoder, pipe.vae
    first = swap_pipeline(pipe, device=sim_device)
    with swap_pipeline(other, device=sim_device):
        with pytest.raises(StateError, match="swapped with another pipeline since"):
            first.close()
        for one in (pipe, other, pipe):
            assert torch.equal(latents(one), expected)
    assert torch.equal(latents(pipe), expected)
    first.close()
    assert torch.equal(latents(pipe.to(sim_device)), expected)


@eager
def test_a_model_without_blocks_that_does_not_fit_is_told_what_would(
    sim_device: torch.device,
) -> None:
    """`tiled=False`: the decoder may not make itself smaller, and has no list of blocks."""
    pipe = built("wan")
    size = {"height": 64, "width": 64, "num_inference_steps": 1}
    with swap_pipeline(pipe, device=sim_device, vram_budget=6 * MIB, tiled=False):
        with pytest.raises(PlanError, match=r"vae does not fit .*, of which its call needs"):
            made(pipe, "wan", **size)


def test_the_report_of_the_cpu() -> None:
    with swap_pipeline(built("ltx"), device="cpu") as swap:
        assert "vae: " in swap.report()
        assert swap.report().count("runs on the CPU, where it lies") == 3
