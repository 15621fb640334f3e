"""Under dynamic VRAM, which newer cores have on by default: a block has one owner here, too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management as management
import comfy.sd
import dynamic
import pytest
import simulated
import tiny
import torch
from test_loader import opened, saved

from blockswap import BlockSwapArgs
from blockswap.errors import ModelError
from blockswap.nodes import host
from blockswap.nodes.holding import holding_of
from blockswap.nodes.patcher import Wish, swap_on_clone


def test_a_core_without_it_says_so() -> None:
    assert not host.is_dynamic(tiny.model("t2v"))


def swapped(patcher: Any, **args: Any) -> Any:
    return swap_on_clone(patcher, Wish(BlockSwapArgs(**args)))


if dynamic.HAS_DYNAMIC:

    @pytest.fixture
    def read(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        simulated.point_at(sim_device, monkeypatch)
        monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1 << 18)
        yield dynamic.switch_on(monkeypatch)
        management.unload_all_models()

    def test_three_changes_of_args_read_the_file_once_more(
        read: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = saved(tmp_path, tiny.state_dict("t2v"))
        plain = comfy.sd.load_diffusion_model(path)
        assert host.is_dynamic(plain)
        assert read == [path]
        expected = tiny.sample(plain)
        models = []
        for args in ({"blocks": "0,2-4"}, {"blocks_to_swap": 5}, {"vram_budget": "2MiB"}):
            models.append(swapped(plain, **args))
            assert not host.is_dynamic(models[-1])
            assert torch.equal(tiny.sample(models[-1]), expected), args
            assert holding_of(models[-1].model).plan.streamed
        assert len({id(model.model) for model in models}) == 1
        assert read == [path, path]
        assert "is made without it" in caplog.text
        assert torch.equal(tiny.sample(plain), expected)

    def test_the_first_model_is_as_before(read: list[str], tmp_path: Path) -> None:
        path = saved(tmp_path, tiny.state_dict("vace"))
        plain = comfy.sd.load_diffusion_model(path)
        before = tiny.sample(plain)
        model = swapped(plain, blocks="1-4")
        for _ in range(2):
            assert torch.equal(tiny.sample(model), before)
            assert torch.equal(tiny.sample(plain), before)

    @pytest.mark.parametrize("family", ["t2v", "vace"])
    def test_the_loader_opens_and_reads_nothing_of_the_hosts(
        family: str, read: list[str], tmp_path: Path
    ) -> None:
        path = saved(tmp_path, tiny.state_dict(family))
        expected = tiny.sample(comfy.sd.load_diffusion_model(path))
        read.clear()
        for args in ({}, {"blocks": "0-3"}):
            model = opened(path, **args)
            assert torch.equal(tiny.sample(model), expected)
        assert read == []

    @pytest.mark.parametrize("kind", ["bf16", "fp8_scaled"])
    def test_a_lora_is_that_of_the_core_without_dynamic_vram(
        kind: str, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = tiny.state_dict("t2v")
        path = saved(tmp_path, tiny.fp8_scaled(weights) if kind == "fp8_scaled" else weights)
        plain = comfy.sd.load_diffusion_model(path)
        still = comfy.sd.load_diffusion_model(path, disable_dynamic=True)
        expected = tiny.sample(tiny.with_lora(still, 0.6))
        assert torch.equal(tiny.sample(swapped(tiny.with_lora(plain, 0.6), blocks="1-4")), expected)
        assert torch.equal(tiny.sample(tiny.with_lora(opened(path, blocks="1-4"), 0.6)), expected)

    def test_a_model_that_cannot_be_read_again_is_refused(read: list[str]) -> None:
        plain = tiny.model("t2v")
        assert host.is_dynamic(plain)
        with pytest.raises(ModelError, match="--disable-dynamic-vram"):
            swapped(plain, blocks="0-2")
