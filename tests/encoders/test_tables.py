"""A table that is read by rows: what it gives, what it counts, what any other use does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_encoders import ENCODERS, encode, prompt

from blockswap import open_text_encoder
from blockswap.errors import BlockSwapError, ReadError, StateError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ENCODERS["UMT5EncoderModel"].build().save_pretrained(tmp_path)
    return tmp_path


def opened(folder: Path) -> Any:
    return open_text_encoder(folder, {"blocks_to_swap": 2}, device="cpu")


def test_any_indices_give_the_rows(folder: Path) -> None:
    table = ENCODERS["UMT5EncoderModel"].build().shared.weight
    model = opened(folder)
    with model.blockswap as swap, torch.no_grad():
        for ids in ([], [5], [4127, 0, 0, 7], [[1, 2], [2, 1]], list(range(300))):
            before = swap.measured().counters.looked_up_rows
            wanted = torch.tensor(ids, dtype=torch.int64)
            assert torch.equal(model.shared(wanted), table[wanted])
            rows = swap.measured().counters.looked_up_rows - before
            assert rows == wanted.unique().numel()
        assert torch.equal(model.shared(torch.tensor([3], dtype=torch.int32)), table[[3]])
        for beyond in (-1, 4128):
            with pytest.raises(IndexError, match="index out of range"):
                model.shared(torch.tensor([beyond]))
        for other in (torch.float32, torch.bool):
            with pytest.raises(RuntimeError, match="scalar types: Long, Int"):
                model.shared(torch.tensor([3], dtype=other))
        weight = model.shared.weight
        assert weight is model.encoder.embed_tokens.weight
        assert weight.shape == table.shape
        assert weight.device.type == "cpu"
        assert model.device.type == "cpu"


def test_any_other_use_is_right_and_told(folder: Path) -> None:
    table = ENCODERS["UMT5EncoderModel"].build().shared.weight
    model = opened(folder)
    with model.blockswap as swap, torch.no_grad():
        given = torch.ones(1, 32)
        assert torch.equal(
            torch.nn.functional.linear(given, model.shared.weight),
            torch.nn.functional.linear(given, table),
        )
        assert any("was fetched whole 1 times" in said for said in swap.measured().sentences)
        assert swap.measured().counters.looked_up_rows == 4128


def test_closed_it_is_as_before_and_has_no_weights(folder: Path) -> None:
    model = opened(folder)
    model.blockswap.close()
    assert model.shared.weight.is_meta
    with pytest.raises(StateError, match="open it again with open_text_encoder"):
        encode(model, prompt())


def test_saving_is_refused(folder: Path) -> None:
    for args in ({"blocks_to_swap": 2}, {"blocks_to_swap": 0}):
        model: Any = open_text_encoder(folder, args, device="cpu")
        with model.blockswap, pytest.raises(StateError, match="copy that file"):
            model.state_dict()


def test_a_file_written_to_is_refused(folder: Path) -> None:
    model = opened(folder)
    with model.blockswap:
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        with pytest.raises(ReadError, match="written to"), torch.no_grad():
            model.shared(torch.tensor([1]))


def test_a_table_that_is_a_head_too_stays_whole(tmp_path: Path) -> None:
    encoder = ENCODERS["Gemma3ForConditionalGeneration"].build()
    encoder.save_pretrained(tmp_path)
    model: Any = open_text_encoder(tmp_path, {"blocks_to_swap": 2}, device="cpu")
    with model.blockswap:
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, encoder.lm_head.weight)


def test_a_small_table_is_loaded(tmp_path: Path) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=4095, d_model=32, d_kv=8, d_ff=256, num_layers=2, num_heads=4)
    UMT5EncoderModel(config).save_pretrained(tmp_path)
    model: Any = open_text_encoder(tmp_path, {"blocks_to_swap": 1}, device="cpu")
    with model.blockswap as swap:
        model.shared(torch.tensor([1]))
        assert swap.measured().counters.looked_up_rows == 0


def test_a_folder_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BlockSwapError, match="give config="):
        opened(tmp_path)
