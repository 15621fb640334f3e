"""Without a dtype a file computes as from_pretrained does in its main dtype, or is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import expect_refusal
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, open_transformer
from blockswap.errors import ArgsError, GeometryError

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NUMBERS = [torch.int8, torch.uint8, torch.bool, torch.int32, torch.complex64]
EIGHT_BITS = [getattr(torch, n) for n in ("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool")]
_SIZES: dict[str, Any] = dict(
    num_attention_heads=2,
    attention_head_dim=128,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
    ffn_dim=96,
    num_layers=3,
)
KINDS: dict[str, Any] = {
    "plain": {},
    "vace": dict(vace_layers=[0, 2], vace_in_channels=8),
    "image": dict(image_dim=40, added_kv_proj_dim=256),
}
_Of = Callable[[str], torch.dtype]


def _saved(folder: Path, kind: str, of: _Of) -> Path:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    torch.manual_seed(5)
    made: Any = WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel
    model = made(**_SIZES, **KINDS[kind])
    model.save_config(folder)
    weights = {n: torch.rand_like(p).sub_(0.5).mul_(0.3) for n, p in model.state_dict().items()}
    stored = {name: value.to(of(name)) for name, value in weights.items()}
    save_file(stored, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def _inputs(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    given: dict[str, Any] = dict(
        hidden_states=drawn(1, 4, 2, 8, 8), encoder_hidden_states=drawn(1, 7, 32)
    )
    if kind == "vace":
        given["control_hidden_states"] = drawn(1, 8, 2, 8, 8)
    if kind == "image":
        given["encoder_hidden_states_image"] = drawn(1, 257, 40)
    return given | dict(timestep=torch.tensor([437]), return_dict=False)


MIXES: dict[str, tuple[torch.dtype, _Of]] = {
    "bf16": (BF16, lambda name: BF16),
    "fp16": (FP16, lambda name: FP16),
    "fp32": (FP32, lambda name: FP32),
    "kept parts fp32": (BF16, lambda name: FP32 if "norm" in name or "table" in name else BF16),
    "patch fp32": (BF16, lambda name: FP32 if "patch" in name else BF16),
    "block 1 fp16": (BF16, lambda name: FP16 if name.startswith("blocks.1.") else BF16),
    "tables fp64": (FP16, lambda name: FP64 if "table" in name else FP16),
    "biases fp32": (BF16, lambda name: FP32 if name.endswith("bias") else BF16),
    "norms bf16": (FP32, lambda name: BF16 if "norm" in name or "table" in name else FP32),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_gives_the_bits_of_from_pretrained(
    kind: str, mix: str, tmp_path: Path, device: torch.device
) -> None:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    main, of = MIXES[mix]
    folder = _saved(tmp_path, kind, of)
    loader: Any = WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel
    given = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in _inputs(kind, main).items()
    }
    with torch.no_grad():
        whole = loader.from_pretrained(folder, torch_dtype=main).eval().to(device)
        for parameter in whole.parameters():
            parameter.data = parameter.data.clone()  # off the file's own, unaligned, addresses
        expected = whole(**given)[0]
        opened: Any = open_transformer(folder, BlockSwapArgs(blocks_to_swap=2), device=device)
        for _ in range(2):
            assert torch.equal(opened(**given)[0], expected)
    opened.blockswap.close()


def test_a_uniform_file_gets_no_decode(tmp_path: Path, device: torch.device) -> None:
    opened: Any = open_transformer(
        _saved(tmp_path, "plain", lambda name: BF16), BlockSwapArgs(blocks_to_swap=2), device=device
    )
    dtypes = {name: p.dtype for name, p in opened.named_parameters()}
    assert {d for name, d in dtypes.items() if name.startswith("blocks.")} == {BF16}
    wide = {name for name, d in dtypes.items() if d == FP32}
    assert all("time_embedder" in name or name == "scale_shift_table" for name in wide)
    assert len(wide) == 5
    opened.blockswap.close()


@pytest.mark.parametrize(
    "stored", [torch.int8, torch.uint8, torch.bool, torch.int32, torch.complex64], ids=str
)
@pytest.mark.parametrize(
    "where", ["blocks.1.attn1.to_q.weight", "blocks.2.norm2.weight", "scale_shift_table"]
)
def test_what_cannot_compute_is_refused_at_opening(
    where: str, stored: torch.dtype, tmp_path: Path
) -> None:
    def of(name: str) -> torch.dtype:
        return stored if where == name else BF16

    folder, args = _saved(tmp_path, "plain", of), BlockSwapArgs(blocks_to_swap=1)
    words = [str(stored).removeprefix("torch."), where]
    for dtype in (None, BF16):
        expect_refusal(
            lambda: open_transformer(folder, args, device="cpu", dtype=dtype), GeometryError, *words
        )


@pytest.mark.parametrize("beside", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_without_a_dtype_computes_in_the_16_bits_beside_it(
    stored: torch.dtype, beside: torch.dtype, tmp_path: Path
) -> None:
    expected = FP16 if beside == FP16 else BF16

    def of(name: str) -> torch.dtype:
        return stored if "attn" in name and name.endswith("q.weight") else beside

    outs = []
    for dtype in (None, expected):
        folder, args = _saved(tmp_path, "plain", of), BlockSwapArgs(blocks_to_swap=1)
        opened: Any = open_transformer(folder, args, device="cpu", dtype=dtype)
        with torch.no_grad():
            outs.append(opened(**_inputs("plain", expected))[0])
        opened.blockswap.close()
    assert outs[0].dtype == expected
    assert torch.equal(*outs)


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_a_dtype_that_does_not_compute_cannot_be_asked(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = _saved(tmp_path, "plain", lambda name: BF16)
    expect_refusal(
        lambda: open_transformer(folder, device="cpu", dtype=dtype), ArgsError, "16 bits or more"
    )
