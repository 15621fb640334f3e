"""A 16-bit file whose data begins at 8 modulo 16: the CPU moves nothing, and bits are equal."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockswap import BlockSwapArgs, open_transformer
from blockswap.adapters.skeleton import build_skeleton, keeps_fp32
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry, to_diffusers_key
from blockswap.stream.device import huge_page_buffer
from blockswap.synth import synth

SMALL = WanGeometry("original", 192, 512, 3, 2, 16, 16, 64, 32, (1, 2, 2))


def at_8_modulo_16(path: Path) -> None:
    """Lengthens the header by 8 spaces if the data lie at a multiple of 16."""
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    if header % 16 == 8:
        longer = (header + 8).to_bytes(8, "little") + data[8 : 8 + header] + b" " * 8
        path.write_bytes(longer + data[8 + header :])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("side", [2, 10, 34])
def test_bits_are_equal_and_only_fp32_is_moved(dtype: str, side: int, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    synth(SMALL, path, dtype=dtype)
    at_8_modulo_16(path)
    whole = build_skeleton(infer_geometry(open_checkpoint(path)))
    whole.load_state_dict(
        {to_diffusers_key(name): value.clone() for name, value in load_file(path).items()},
        assign=True,
    )
    for name, parameter in whole.named_parameters():
        if keeps_fp32(whole, name):  # as from_pretrained would leave it
            parameter.data = parameter.data.float()
    streamed = open_transformer(path, BlockSwapArgs(blocks_to_swap=3), device="cpu")
    generator = torch.Generator().manual_seed(side)
    inputs = {
        "hidden_states": torch.randn(1, 16, 1, side, side, generator=generator),
        "encoder_hidden_states": torch.randn(1, 7, 64, generator=generator),
    }
    cast = {name: value.to(getattr(torch, dtype)) for name, value in inputs.items()}
    with torch.inference_mode():
        expected = whole(timestep=torch.tensor([500]), return_dict=False, **cast)[0]
        got = streamed(timestep=torch.tensor([500]), return_dict=False, **cast)[0]
    assert torch.equal(expected, got)
    swap = streamed.blockswap
    moved = swap.measured().counters.moved_bytes  # type: ignore[union-attr, operator]
    assert bool(moved) is (dtype == "float32")
    swap.close()  # type: ignore[union-attr, operator]


def _exit_code_of_a_child() -> int:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    return child.exitcode or 0


def test_a_slot_survives_a_fork_that_the_child_does_not_share() -> None:
    memory = huge_page_buffer(3 << 20)
    memory.fill_(7)
    assert _exit_code_of_a_child() == 0
    assert memory.numel() == 3 << 20
    assert bool((memory == 7).all())
    assert huge_page_buffer(0).numel() == 0
