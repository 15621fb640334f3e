"""A library's converter on tensors without data says the same as on data: which bytes go where."""

from math import prod

import pytest
import torch

from blockswap.adapters.hosts.file_rows import FileRows, rows_of
from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import StoredTensor

WIDTH = 3072  # diffusers' converter for Flux knows no other; what is beside it may be narrow


def stored(name: str, tensor: torch.Tensor) -> FileRows:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return rows_of(StoredTensor(name, name, 0, dtype, tuple(tensor.shape), 0, tensor.nbytes))


def with_data(rows: torch.Tensor, data: dict[str, torch.Tensor]) -> torch.Tensor:
    assert isinstance(rows, FileRows)
    assert not rows.blockswap_origin.computed_by, rows.blockswap_origin
    runs = [
        data[run.tensor.name].reshape(-1)[run.start : run.start + run.count]
        for run in rows.blockswap_origin.runs
    ]
    assert sum(run.numel() for run in runs) == prod(rows.shape)
    return torch.cat(runs).view(rows.shape).to(rows.dtype)


def flux_file() -> dict[str, torch.Tensor]:
    """The names of Black Forest Labs' file: one double and one single block, two columns wide."""
    rows = {"img_in": WIDTH, "txt_in": WIDTH, "final_layer.linear": 64}
    rows |= {"final_layer.adaLN_modulation.1": 2 * WIDTH}
    for part in ("time_in", "vector_in"):
        rows |= {f"{part}.in_layer": WIDTH, f"{part}.out_layer": WIDTH}
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        rows |= {f"{block}_mod.lin": 6 * WIDTH, f"{block}_attn.qkv": 3 * WIDTH}
        rows |= {f"{block}_attn.proj": WIDTH, f"{block}_mlp.0": 4 * WIDTH, f"{block}_mlp.2": WIDTH}
    rows |= {"single_blocks.0.linear1": 7 * WIDTH, "single_blocks.0.linear2": WIDTH}
    rows |= {"single_blocks.0.modulation.lin": 3 * WIDTH}
    draw = torch.Generator().manual_seed(0)
    file = {}
    for name, count in rows.items():
        file[f"{name}.weight"] = torch.randn(count, 2, generator=draw)
        file[f"{name}.bias"] = torch.randn(count, generator=draw)
    for name in ("single_blocks.0", "double_blocks.0.img_attn", "double_blocks.0.txt_attn"):
        for part in ("query", "key"):
            file[f"{name}.norm.{part}_norm.scale"] = torch.randn(128, generator=draw)
    return {f"model.diffusion_model.{name}": tensor for name, tensor in file.items()}


def test_diffusers_converter_for_flux() -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    data = flux_file()
    wanted = convert_flux_transformer_checkpoint_to_diffusers(dict(data))
    found = convert_flux_transformer_checkpoint_to_diffusers(
        {name: stored(name, tensor) for name, tensor in data.items()}
    )
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(with_data(found[name], data), tensor), name
    swapped = found["norm_out.linear.weight"].blockswap_origin.runs
    assert [run.start for run in swapped] == [2 * WIDTH, 0]  # two pieces, in the other order


FOLLOWED = {
    "chunk": lambda a, b: a.chunk(3, dim=0)[1],
    "split": lambda a, b: a.split([2, 4, 6])[2],
    "negative slice": lambda a, b: a[-5:-2],
    "select": lambda a, b: a[3],
    "unbind": lambda a, b: a.unbind(0)[11],
    "view": lambda a, b: a.view(3, 4, 6)[1].reshape(-1),
    "cat": lambda a, b: torch.cat([b[2:], a[:3], a[3:4]]),
    "stack": lambda a, b: torch.stack([a, b]),
    "stack of a split": lambda a, b: torch.stack(a.chunk(2)[::-1]),
    "unsqueeze, columns of one row": lambda a, b: a[2].unsqueeze(0)[:, 2:5],
    "squeeze, t of a column": lambda a, b: a.view(-1, 1).t().squeeze(),
    "cast": lambda a, b: a.to(torch.bfloat16)[2:],
    "widened, then cast": lambda a, b: a.double().half(),
    "clone, contiguous, detach": lambda a, b: a.clone().contiguous().detach(),
    "flatten": lambda a, b: a.flatten()[5:20],
}
COMPUTED = {
    "sum": lambda a, b: a + b,
    "scale": lambda a, b: a * 2,
    "transpose": lambda a, b: a.t().contiguous(),
    "columns": lambda a, b: a[:, 1:3],
    "columns side by side": lambda a, b: torch.cat([a, b], dim=1),
    "every other row": lambda a, b: a[::2],
    "rounded on the way": lambda a, b: a.half().float(),
    "flip": lambda a, b: a.flip(0),
    "permute": lambda a, b: a.view(3, 4, 6).permute(1, 0, 2).reshape(12, 6),
    "with zeros": lambda a, b: torch.cat([a, torch.zeros(1, 6)]),
    "bytes as another dtype": lambda a, b: a.view(torch.int32),
    "bytes of another size": lambda a, b: a.view(torch.float16)[:, :6],
    "repeat": lambda a, b: a[:6].repeat(2, 1),
    "expand": lambda a, b: a[:1].expand(12, 6),
    "roll": lambda a, b: a.roll(1, 0),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "matmul": lambda a, b: a @ b[:6],
    "as_strided": lambda a, b: a.as_strided((6, 12), (1, 6)),
    "index": lambda a, b: a[torch.tensor([1, 0])],
    "index_select": lambda a, b: a.index_select(0, torch.tensor([1, 0])),
    "a transpose flattened": lambda a, b: a.t().reshape(-1),
    "a computed part": lambda a, b: torch.cat([a, b + 1]),
}


def _both() -> tuple[dict[str, torch.Tensor], list[FileRows]]:
    data = {name: torch.randn(12, 6, generator=torch.Generator().manual_seed(ord(name)))
            for name in "ab"}  # fmt: skip
    return data, [stored(name, tensor) for name, tensor in data.items()]


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed(name: str) -> None:
    data, rows = _both()
    found = FOLLOWED[name](*rows)
    assert torch.equal(with_data(found, data), FOLLOWED[name](*data.values()))


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_says_so(name: str) -> None:
    data, rows = _both()
    found = COMPUTED[name](*rows)
    assert found.shape == COMPUTED[name](*data.values()).shape
    assert found.blockswap_origin.computed_by


WRITES = {
    "mul_": lambda a, b: a.mul_(2),
    "zero_": lambda a, b: a.zero_(),
    "copy_": lambda a, b: a.copy_(b),
    "copy_ into a real one": lambda a, b: torch.zeros(12, 6).copy_(a),
    "an item": lambda a, b: a.__setitem__(0, 1.0),
    "rows of another": lambda a, b: a.__setitem__(slice(0, 2), b[:2]),
    "rows into a real one": lambda a, b: torch.zeros(12, 6).__setitem__(slice(0, 2), b[:2]),
    "augmented": lambda a, b: a.__iadd__(b),
    "out=": lambda a, b: torch.add(a, b, out=torch.empty(12, 6)),
    "a chunk in place": lambda a, b: a.chunk(3)[0].neg_(),
    "t_": lambda a, b: a.t_(),
    "data.add_": lambda a, b: a.data.add_(1),
    "index_copy_": lambda a, b: a.index_copy_(0, torch.tensor([0]), b[:1]),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_in_place_is_refused(name: str) -> None:
    """It would be lost: the tensor would go on saying that it is the file's."""
    with pytest.raises(GeometryError, match="writes into tensors in place"):
        WRITES[name](*_both()[1])


def test_values_are_not_to_be_had() -> None:
    _, (rows, other) = _both()
    with pytest.raises(GeometryError, match="reads values"):
        rows[0, 0].item()
    with pytest.raises(GeometryError, match="reads values"):
        torch.equal(rows, other)
