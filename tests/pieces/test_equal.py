"""In pieces every family's output is the whole's, bit for bit, on the CPU in fp32 and bf16."""

from itertools import product
from typing import Any

import pytest
import torch
from clips import FAMILIES, clip, given, loaded, run

from blockswap.pieces import Pieces

# A product of 257 timesteps takes another kernel for the last row alone; projected once for each
# timestep that differs, there is no such row.
ODD_LAST_ROW = ("per-token", "4 x 64 + 1", "float32")
SIZES = {
    "240": {},
    "batch-2": {"batch": 2},
    "4 x 64 + 1": {"width": 16, "height": 16, "frames": 1025},
    "33": {"width": 16, "height": 16, "frames": 129},
}
PIECES = (64, 100, 239, 240)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "size"), list(product(FAMILIES, SIZES)))
def test_output_is_the_wholes(family: str, size: str, dtype: Any) -> None:
    workload = clip(family, dtype=dtype, **SIZES[size])
    model = loaded(family, workload)
    inputs = given(family, workload)
    kept = {name: v.clone() for name, v in inputs.items() if isinstance(v, torch.Tensor)}
    whole = run(model, inputs)
    for tokens in PIECES if family == "t2v" else PIECES[:2]:
        said: list[str] = []
        pieces = Pieces(model, tokens, said.append)
        cut = run(model, inputs)
        if (family, size, dtype) == ODD_LAST_ROW:
            assert torch.allclose(cut, whole, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(cut, whole)
        assert torch.equal(run(model, inputs), cut), "the first step left something behind"
        assert not said
        pieces.remove()
    assert all(torch.equal(inputs[name], before) for name, before in kept.items())
    assert torch.equal(run(model, inputs), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_write_into_new_tensors_where_somebody_looks_on(family: str) -> None:
    workload = clip(family)
    model = loaded(family, workload)
    inputs = given(family, workload)
    seen: list[torch.Tensor] = []
    whole = run(model, inputs)

    def keep(_: object, args: Any, out: Any) -> None:
        first = out if isinstance(out, torch.Tensor) else out[1]
        seen.append(first)
        copies.append(first.clone())

    copies: list[torch.Tensor] = []
    handle = model.blocks[1].register_forward_hook(keep)
    said: list[str] = []
    pieces = Pieces(model, 64, said.append)
    assert torch.equal(run(model, inputs), whole)
    assert torch.equal(seen[0], copies[0]), "a later block wrote into what the hook holds"
    assert [sentence for sentence in said if "hooked on a block" in sentence]
    handle.remove()
    pieces.remove()


def test_blocks_that_run_alone_never_write_into_what_they_are_handed() -> None:
    workload = clip("t2v")
    model = loaded("t2v", workload)
    pieces = Pieces(model, 64, print)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 240, 48, generator=draw).to(torch.bfloat16)
    text = torch.randn(1, 512, 48, generator=draw).to(torch.bfloat16)
    times = torch.randn(1, 6, 48, generator=draw)
    rotary = model.rope(torch.empty(1, 4, 5, 12, 16))
    before = hidden.clone()
    with torch.no_grad():
        cut = model.blocks[0](hidden, text, times, rotary)
        pieces.remove()
        whole = model.blocks[0](hidden, text, times, rotary)
    assert torch.equal(cut, whole)
    assert torch.equal(hidden, before)


def test_many_timesteps_are_projected_for_every_token() -> None:
    workload = clip("per-token", dtype="float32")
    model = loaded("per-token", workload)
    inputs = given("per-token", workload)
    inputs["timestep"] = torch.arange(240.0).reshape(1, 240)
    whole = run(model, inputs)
    pieces = Pieces(model, 100, print)
    assert torch.equal(run(model, inputs), whole)
    pieces.remove()


def test_text_keys_are_made_once_a_visit_and_products_add_up() -> None:
    workload = clip("t2v")
    model = loaded("t2v", workload)
    rows: dict[str, list[int]] = {}
    call: Any = torch.nn.Linear.__call__
    names = {id(m): n for n, m in model.blocks[0].named_modules()}

    def count(self: Any, x: torch.Tensor) -> torch.Tensor:
        if id(self) in names:
            rows.setdefault(names[id(self)], []).append(x.numel() // x.shape[-1])
        return call(self, x)  # type: ignore[no-any-return]

    pieces = Pieces(model, 64, print)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "__call__", count)
        run(model, given("t2v", workload))
    pieces.remove()
    assert rows["attn2.to_k"] == rows["attn2.to_v"] == [512]
    assert {name for name, calls in rows.items() if sum(calls) != 240} == {
        "attn2.to_k",
        "attn2.to_v",
    }
    assert all(len(calls) == 3 for name, calls in rows.items() if sum(calls) == 240)
