"""T5 and UMT5 encoders in GGUF with llama.cpp's names: equal to what gguf dequantises, by rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import ENCODERS, encode, prompt, same

from blockswap import open_text_encoder
from blockswap.errors import BlockSwapError
from llama_cpp_files import write_encoder

eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


def reference(class_name: str, means: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    import transformers

    kind = getattr(transformers, class_name)
    model = kind.from_pretrained(
        None, config=ENCODERS[class_name].build().config, state_dict=means, dtype=dtype
    )
    return model.eval()


@pytest.mark.parametrize(
    ("class_name", "kind", "dtype"),
    [
        ("UMT5EncoderModel", "Q8_0", torch.bfloat16),
        ("UMT5EncoderModel", "F16", torch.float16),
        ("T5EncoderModel", "Q5_1", torch.bfloat16),
        ("T5EncoderModel", "Q8_0", torch.float32),
    ],
)
def test_equal_to_what_gguf_dequantises(
    class_name: str, kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.gguf"
    means = write_encoder(path, ENCODERS[class_name].build(), kind)
    asked = {"dtype": dtype} if dtype == torch.float32 else {}
    model: Any = open_text_encoder(path, {"blocks_to_swap": 2}, device="cpu", **asked)
    assert model.dtype == dtype
    wanted = reference(class_name, means, dtype)
    with model.blockswap as swap, torch.no_grad():
        assert same(encode(model, prompt()), encode(wanted, prompt()))
        rows = swap.measured().counters.looked_up_rows
        assert 0 < rows < 40, "the table is read by rows, each decoded alone"
        ids = torch.tensor([[4127, 0], [7, 7]])
        assert torch.equal(model.shared(ids), wanted.shared(ids))
        assert model.shared(ids[:0]).shape == (0, 2, 32)
        assert torch.equal(
            torch.nn.functional.linear(torch.ones(1, 32, dtype=dtype), model.shared.weight),
            torch.nn.functional.linear(torch.ones(1, 32, dtype=dtype), wanted.shared.weight),
        )


@eager
def test_on_an_accelerator(sim: Any, sim_device: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    means = write_encoder(path, ENCODERS["UMT5EncoderModel"].build(), "Q8_0")
    wanted = reference("UMT5EncoderModel", means, torch.bfloat16).to(sim_device)
    there = {name: ids.to(sim_device) for name, ids in prompt().items()}
    expected = encode(wanted, there)
    model: Any = open_text_encoder(path, {"blocks_to_swap": 4}, device=sim_device)
    with model.blockswap as swap:
        assert same(encode(model, there), expected)
        assert swap.plan.streamed


def test_a_decoder_beside_it_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "whole.gguf", ENCODERS["UMT5EncoderModel"].build()
    model.register_parameter("dec_blk_0", torch.nn.Parameter(torch.zeros(32)))
    write_encoder(path, model, "Q8_0")
    with pytest.raises(BlockSwapError, match=r"has no place for \('dec_blk_0'\)"):
        open_text_encoder(path, device="cpu")
