"""Under dynamic VRAM, which newer cores have on by default: a block has one owner here, too."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_base
import comfy.model_management as management
import comfy.sd
import dynamic
import pytest
import quantised
import simulated
import tiny
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from test_future_core import forget, take_away, words
from test_loader import opened, saved
from tiny import swapped

from blockswap.errors import ModelError
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.seams import host, host_dynamic, host_names


def test_a_core_without_it_says_so() -> None:
    assert not host.is_dynamic(tiny.model("t2v"))


def fp8(weights: dict[str, Any]) -> dict[str, Any]:
    """Plain fp8 weights without scales, everything outside the blocks' linears as it was."""
    return {
        key: value.to(torch.float8_e4m3fn) if tiny.is_linear_of_a_block(key, value) else value
        for key, value in weights.items()
    }


def uneven(weights: dict[str, Any]) -> dict[str, Any]:
    """Norms, biases and a few large weights in fp32."""
    return {
        key: value.float() if value.ndim == 1 or "blocks.2.ffn" in key or "modul" in key else value
        for key, value in weights.items()
    }


# The core's mapping of files does not know the type of mxfp8's scales; nvfp4 needs a graphics card
# where layers are as small as here.
MAPPED_FORMATS = tuple(name for name in quantised.FORMATS if name not in ("mxfp8", "nvfp4"))
KINDS: dict[str, Any] = {
    "bf16": dict,
    "uneven": uneven,
    "fp8": fp8,
    "fp8_scaled": quantised.fp8_scaled,
    "fp8_scaled full": lambda w: quantised.fp8_scaled(w, full=True),
    "mixed": lambda w: quantised.comfy_quant(w, MAPPED_FORMATS),
    # The core's feed-forward reads the weight of its last layer past that layer's call.
    "int8": lambda w: quantised.comfy_quant(w, ("int8_tensorwise",)),
}


def changed_norms(patcher: Any) -> Any:
    """A patch on small layers, which the host loads at once, and on a bias."""
    clone, draw = patcher.clone(), torch.Generator().manual_seed(4)
    root = patcher.model.diffusion_model
    patches = {}
    for name in ("blocks.1.self_attn.norm_q.weight", "blocks.3.norm3.bias", "blocks.2.ffn.0.bias"):
        shape = root.get_parameter(name).shape
        patches["diffusion_model." + name] = ("diff", (torch.randn(shape, generator=draw),))
    assert len(clone.add_patches(patches, 0.5)) == len(patches)
    return clone


if dynamic.HAS_DYNAMIC:

    @pytest.fixture
    def read(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        simulated.point_at(sim_device, monkeypatch)
        monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1 << 18)
        yield dynamic.switch_on(monkeypatch)
        management.unload_all_models()

    def test_three_changes_of_args_read_the_file_once(read: list[str], tmp_path: Path) -> None:
        path = saved(tmp_path, tiny.state_dict("t2v"))
        plain = comfy.sd.load_diffusion_model(path)
        assert host.is_dynamic(plain)
        expected = tiny.sample(plain)
        models = []
        for args in ({"blocks": "0,2-4"}, {"blocks_to_swap": 5}, {"vram_budget": "2MiB"}):
            models.append(swapped(plain, **args))
            assert host.is_dynamic(models[-1])
            for _ in range(2):
                assert torch.equal(tiny.sample(models[-1]), expected), args
            holding = holding_of(plain.model)
            assert holding.plan.streamed
            assert holding.swap.measured().counters.forwards == 4  # opened once for both
        assert len({id(model.model) for model in models}) == 1
        assert read == [path]
        for model in (plain, models[0], models[1], plain):
            assert torch.equal(tiny.sample(model), expected)
        assert read == [path]

    def test_held_blocks_get_no_place_and_no_pin_of_the_hosts(
        read: list[str], tmp_path: Path
    ) -> None:
        plain = comfy.sd.load_diffusion_model(saved(tmp_path, tiny.state_dict("t2v")))
        tiny.sample(plain)
        block, other = plain.model.diffusion_model.blocks[2], plain.model.diffusion_model.blocks[5]
        assert "_v" in vars(block.ffn[0])
        end = next(iter(plain.model.dynamic_vbars.values())).end
        by_host = management.TOTAL_PINNED_MEMORY
        model = swapped(plain, blocks="0-4")
        tiny.sample(model)
        held = holding_of(plain.model)
        traces = [n for m in held.modules for n in ("_v", "_pins", "_pin_state") if n in vars(m)]
        assert traces == []
        assert "_v" in vars(other.ffn[0])
        pinned = held.pinned_bytes
        blocks = plain.model.diffusion_model.blocks[:5]
        assert pinned >= sum(p.nbytes for p in blocks.parameters())
        assert pinned < management.TOTAL_PINNED_MEMORY <= by_host * 1.2
        assert model.pinned_memory_size() > pinned
        management.unload_all_models()
        assert management.TOTAL_PINNED_MEMORY == 0
        tiny.sample(plain)  # in the places that it had
        assert next(iter(plain.model.dynamic_vbars.values())).end == end

    @pytest.mark.parametrize("family", ["t2v", "vace", "i2v"])
    def test_a_family_in_turn_with_the_model_itself(
        family: str, read: list[str], tmp_path: Path
    ) -> None:
        path = saved(tmp_path, tiny.state_dict(family))
        plain = comfy.sd.load_diffusion_model(path)
        before = tiny.sample(plain)
        model, loaded = swapped(plain, blocks="1-4"), opened(path, blocks="0-3")
        for _ in range(2):
            assert torch.equal(tiny.sample(model), before)
            assert torch.equal(tiny.sample(plain), before)
            assert torch.equal(tiny.sample(loaded), before)
        assert read == [path]  # nothing for the loader

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_lora_before_and_after_the_node_and_the_loader(
        kind: str, read: list[str], tmp_path: Path
    ) -> None:
        path = saved(tmp_path, KINDS[kind](tiny.state_dict("t2v")))
        plain = comfy.sd.load_diffusion_model(path)
        bare, loaded = tiny.sample(plain), opened(path, blocks="1-4")
        assert torch.equal(tiny.sample(swapped(plain, blocks="1-4")), bare)
        assert torch.equal(tiny.sample(loaded), bare)
        for patch in (lambda model: tiny.with_lora(model, 0.6), changed_norms):
            expected = tiny.sample(patch(plain))
            assert not torch.equal(expected, bare)
            assert torch.equal(tiny.sample(swapped(patch(plain), blocks="1-4")), expected)
            assert torch.equal(tiny.sample(patch(swapped(plain, blocks="0-2"))), expected)
            assert torch.equal(tiny.sample(patch(loaded)), expected)
        assert torch.equal(tiny.sample(plain), bare)

    def test_a_merge(read: list[str], tmp_path: Path) -> None:
        paths = []
        for seed in (1, 2):
            (tmp_path / str(seed)).mkdir()
            paths.append(saved(tmp_path / str(seed), tiny.state_dict("t2v", seed=seed)))
        one, two = (comfy.sd.load_diffusion_model(path) for path in paths)
        merge = ModelMergeSimple().merge
        expected = tiny.sample(merge(one, two, 0.3)[0])
        for first, second in (
            (swapped(one, blocks="1-4"), two),
            (one, swapped(two, blocks="1-4")),
            (swapped(one, blocks="0-2"), swapped(two, blocks="3-5")),
        ):
            tiny.sample(second)
            merged = merge(first, second, 0.3)[0]
            assert torch.equal(tiny.sample(merged), expected)
            assert torch.equal(tiny.sample(swapped(merged, blocks="2-5")), expected)

    def test_a_model_that_no_file_is_known_of(read: list[str]) -> None:
        plain = tiny.model("t2v")
        assert host.is_dynamic(plain)
        expected = tiny.sample(plain)
        assert torch.equal(tiny.sample(swapped(plain, blocks="0-2")), expected)

    def test_a_scheduled_lora_is_that_of_the_hosts_other_way(
        read: list[str], tmp_path: Path
    ) -> None:
        path = saved(tmp_path, tiny.state_dict("t2v"))
        plain = comfy.sd.load_diffusion_model(path)
        hooks = comfy.hooks.create_hook_lora(tiny.lora_of(plain), 0.8, 0)
        expected = tiny.sample(plain, hooks=hooks)
        assert torch.equal(tiny.sample(swapped(plain, blocks="1-4"), hooks=hooks), expected)
        with pytest.raises(ModelError, match="a file is never written"):
            tiny.sample(opened(path, blocks="1-4"), hooks=hooks)

    def test_what_may_not_be_pinned_is_read_through_the_mapping(
        read: list[str], tmp_path: Path
    ) -> None:
        plain = comfy.sd.load_diffusion_model(saved(tmp_path, tiny.state_dict("t2v")))
        expected = tiny.sample(plain)
        management.unload_all_models()
        model = swapped(plain, blocks="0-5", ram_budget="1MiB")
        assert torch.equal(tiny.sample(model), expected)
        held = holding_of(plain.model)
        assert 0 < held.pinned_bytes <= 1 << 20
        assert "read through the file's mapping" in held.swap.report().text()

    def test_pinned_copies_go_when_the_host_wants_the_memory_back(
        read: list[str], tmp_path: Path
    ) -> None:
        plain = comfy.sd.load_diffusion_model(saved(tmp_path, tiny.state_dict("t2v")))
        expected = tiny.sample(plain)
        model = swapped(plain, blocks="0-4")
        tiny.sample(model)
        pinned = holding_of(plain.model).pinned_bytes
        assert host_dynamic.is_active(model)
        management.free_pins(1 << 30)
        assert holding_of(plain.model) is not None  # it runs, as far as the host knows
        management.reset_cast_buffers()
        assert management.free_pins(1 << 30) >= pinned
        assert holding_of(plain.model) is None
        assert management.TOTAL_PINNED_MEMORY == 0
        assert torch.equal(tiny.sample(model), expected)

    def test_a_patch_that_changes_a_shape_is_refused(read: list[str], tmp_path: Path) -> None:
        plain = comfy.sd.load_diffusion_model(saved(tmp_path, tiny.state_dict("t2v")))
        model = swapped(plain, blocks="0-4")
        wider = (torch.zeros(256, 256), {"pad_weight": True})
        model.add_patches({"diffusion_model.blocks.1.ffn.0.weight": ("diff", wider)}, 1.0)
        with pytest.raises(ModelError, match=r"gives diffusion_model\.blocks\.1\.ffn\.0\.weight"):
            tiny.sample(model)
        assert holding_of(plain.model) is None

    @pytest.mark.parametrize("name", host_names.SHARING)
    def test_a_name_that_blocks_are_taken_out_through_is_not_guessed_at(
        name: str, read: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = tiny.model("t2v")
        assert host_dynamic.is_on()
        assert host_dynamic.shares(plain)
        take_away(name, monkeypatch)
        assert not host_dynamic.is_on()
        assert not host_dynamic.shares(plain)

    @pytest.mark.parametrize(("place", "word"), words(host_names.SHARING_WORDS))
    def test_a_word_of_the_hosts_code_is_not_guessed_at(
        place: str, word: str, read: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = tiny.model("t2v")
        assert host_dynamic.shares(plain)
        forget(place, word, monkeypatch)
        assert not host_dynamic.is_on()
        assert not host_dynamic.shares(plain)

    def test_host_memory_is_that_of_the_host_alone(tmp_path: Path) -> None:
        """In their own processes: anonymous memory and pins, file pages and device told apart."""
        path = saved(tmp_path, tiny.state_dict("t2v", blocks=60))
        alone, ours = (_host_bytes(way, path) for way in ("host", "node"))
        assert alone > Path(path).stat().st_size * 0.8  # it pins what it uses
        assert ours <= alone * 1.2

    def _host_bytes(way: str, path: str) -> int:
        script = str(Path(__file__).with_name("host_bytes.py"))
        done = subprocess.run(
            [sys.executable, script, way, path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout.split()[-1])

    def test_a_core_whose_dynamic_vram_is_not_known_gets_a_model_without_it(
        read: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = saved(tmp_path, tiny.state_dict("t2v"))
        plain = comfy.sd.load_diffusion_model(path)
        expected = tiny.sample(plain)
        monkeypatch.setattr(host_dynamic, "SMALL_BYTES", 12345)
        models = [swapped(plain, **args) for args in ({"blocks": "0,2-4"}, {"blocks_to_swap": 5})]
        for model in (*models, opened(path)):
            assert not host.is_dynamic(model)
            assert torch.equal(tiny.sample(model), expected)
        assert read == [path, path]
        assert "is made without it" in caplog.text
        with pytest.raises(ModelError, match="--disable-dynamic-vram"):
            swapped(tiny.model("t2v"), blocks="0-2")
