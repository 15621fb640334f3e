"""Writes to a table that is read by rows are refused, whatever way they come; reads are not."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from tiny_encoders import ENCODERS

from blockswap import open_text_encoder, swap_blocks
from blockswap.errors import ModelError, StateError

NAME = "UMT5EncoderModel"


def like(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros(weight.shape, device=weight.device)


def set_row(weight: Any) -> None:
    weight[5] = 0


def set_data(weight: Any) -> None:
    weight.data = like(weight)


def add_to_data(weight: Any) -> None:
    weight.data += 1


def into(weight: Any) -> None:
    torch.add(like(weight), 1, out=weight)


WRITES: dict[str, Callable[[Any], Any]] = {
    "mul_": lambda weight: weight.mul_(2),
    "copy_": lambda weight: weight.copy_(like(weight)),
    "init": torch.nn.init.zeros_,
    "index_fill_": lambda weight: weight.index_fill_(
        0, torch.tensor([5], device=weight.device), 0.0
    ),
    "foreach": lambda weight: torch._foreach_mul_([weight], 2.0),
    "a row": set_row,
    "other data": set_data,
    "data in place": add_to_data,
    "out": into,
    "a view": lambda weight: weight[5].zero_(),
    "a view of a view": lambda weight: weight.t()[0][1:9].add_(1),
    "one of several views": lambda weight: weight.split(1000)[1].zero_(),
    "data, written": lambda weight: weight.data.mul_(2),
    "copied": copy.deepcopy,
    "saved": pickle.dumps,
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "cast": lambda model: model.shared.half(),
    "loaded": lambda model: model.shared.load_state_dict({"weight": torch.zeros(4128, 32)}),
    "grown": lambda model: model.resize_token_embeddings(4200),
}


def opened(store: str, folder: Path, device: torch.device) -> Any:
    if store == "memory":
        model = ENCODERS[NAME].build().eval()
        swap_blocks(model, {"blocks_to_swap": 2}, device=device)
        return model
    ENCODERS[NAME].build().save_pretrained(folder)
    return open_text_encoder(folder, {"blocks_to_swap": 2}, device=device)


@pytest.mark.parametrize(
    ("device", "store"),
    [("cpu", "file"), ("sim-eager", "file"), ("sim-lazy", "memory")],
    indirect=["device"],
)
@torch.no_grad()
def test_every_write_is_refused_and_nothing_changes(
    device: torch.device, store: str, tmp_path: Path
) -> None:
    ids = torch.tensor([[1, 5, 7, 4000]], device=device)
    expected = ENCODERS[NAME].build().eval().to(device)(ids)[0].cpu()
    model = opened(store, tmp_path, device)
    weight = model.shared.weight
    for name, write in {**WRITES, **CALLS}.items():
        with pytest.raises(StateError, match=r"close the swap"):
            write(model if name in CALLS else weight)
        assert model.shared.weight is weight is model.encoder.embed_tokens.weight, name
    assert torch.equal(model(ids)[0].cpu(), expected)
    assert model.encoder.to(device) is model.encoder
    model.blockswap.close()


@torch.no_grad()
def test_views_read_as_the_tables_own(tmp_path: Path) -> None:
    table = ENCODERS[NAME].build().shared.weight.detach()
    model = opened("file", tmp_path, torch.device("cpu"))
    weight = model.shared.weight
    assert weight[5].tolist() == table[5].tolist()
    assert (weight[3:5].numpy() == table[3:5].numpy()).all()
    assert torch.equal(weight.t()[0][1:9] * 2, table.t()[0][1:9] * 2)
    assert torch.equal(torch.stack(weight.split(1376)), torch.stack(table.split(1376)))
    assert repr(weight[5]) == repr(table[5])
    model.blockswap.close()


@torch.no_grad()
def test_an_adapter_on_the_table_adds_and_is_not_merged(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 5, 7, 4000]])

    def adapted(model: Any) -> Any:
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=4, target_modules=["shared", "embed_tokens"], init_lora_weights=False
        )
        return peft.inject_adapter_in_model(config, model).eval()

    expected = adapted(ENCODERS[NAME].build())(ids)[0]
    model = adapted(opened("file", tmp_path, torch.device("cpu")))
    assert torch.equal(model(ids)[0], expected)
    for safely in (False, True):
        with pytest.raises(StateError, match=r"close the swap"):
            model.shared.merge(safe_merge=safely)
    model.blockswap.close()


def test_a_lora_file_on_the_table_is_refused(sim_device: torch.device, tmp_path: Path) -> None:
    model = ENCODERS[NAME].build().eval()
    factors = {"A": torch.ones(2, 32), "B": torch.ones(4128, 2)}
    file = tmp_path / "a.safetensors"
    save_file({f"shared.lora_{end}.weight": factor for end, factor in factors.items()}, file)
    with pytest.raises(ModelError, match=r"shared.weight.*load it beside"):
        swap_blocks(model, {"blocks_to_swap": 2}, device=sim_device, loras=[file])
    assert not hasattr(model, "blockswap")
