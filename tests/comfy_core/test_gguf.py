"""GGUF models by their pack's own tensors and layers: behind its loader, and opened by ours.

With a stand-in for the pack, and with the real one where `BLOCKSWAP_GGUF` names its folder.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management as management
import comfy.sd
import dynamic
import gguf_packs
import pytest
import simulated
import tiny
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from gguf_packs import written
from safetensors.torch import save_file
from tiny import swapped

from blockswap import BlockSwapArgs
from blockswap.errors import BlockSwapError, HostError, ModelError
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import gguf_pack, host
from blockswap.nodes.seams.gguf import NOTES

KINDS = [("stand-in", "Q8_0")]
if gguf_packs.REAL:
    KINDS += [("real", kind) for kind in ("Q8_0", "Q4_0", "Q5_1", "BF16", "F16")]
by_pack = pytest.mark.parametrize(("pack", "kind"), KINDS)
pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
ARGS: tuple[dict[str, Any], ...] = ({"blocks": "0,2-4"}, {"blocks_to_swap": 6}, {})


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.computing_on(sim_device, monkeypatch)


def opened(path: str, weight_dtype: str = "default", **args: Any) -> Any:
    return load_streamed(path, Wish(BlockSwapArgs(**args)), weight_dtype)


def with_lora(patcher: Any, strength: float = 0.6, *, biases: bool = True) -> Any:
    """A LoRA for packed weights, for plain ones, and for biases beside packed weights."""
    lora = tiny.lora_of(tiny.model("t2v"))  # a packed model does not tell its true shapes
    draw = torch.Generator().manual_seed(4)
    for at in range(tiny.BLOCKS) if biases else ():
        for name, size in (("self_attn.q.diff_b", tiny.DIM), ("self_attn.norm_q.diff", tiny.DIM)):
            key = f"diffusion_model.blocks.{at}.{name}"
            lora[key] = torch.randn(size, generator=draw) * 0.1
    return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0)[0]


def streamed_bytes(model: Any) -> int:
    held = holding_of(model.model)
    return sum(unit.slab_bytes for unit in held.plan.units if unit.tier != "resident")


@by_pack
def test_the_swap_node_behind_the_packs_loader(pack: str, kind: str, tmp_path: Path) -> None:
    weights = tiny.state_dict("t2v")
    plain = gguf_packs.loaded(pack, written(tmp_path / "wan.gguf", weights, kind))
    bare = tiny.sample(plain)
    patched = with_lora(plain)
    expected = tiny.sample(patched)
    assert not torch.equal(bare, expected)

    whole = sum(2 * value.numel() for key, value in weights.items() if "blocks." in key)
    for args in ARGS:
        assert torch.equal(tiny.sample(swapped(plain, **args)), bare)
        assert streamed_bytes(plain) < whole * 2
        assert torch.equal(tiny.sample(swapped(patched, **args)), expected)
        assert torch.equal(tiny.sample(with_lora(swapped(plain, **args))), expected)
    assert torch.equal(tiny.sample(plain), bare)
    assert torch.equal(tiny.sample(patched), expected)


@by_pack
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_our_loader_streams_the_files_bytes(
    pack: str, kind: str, prefix: str, tmp_path: Path
) -> None:
    weights = {prefix + key: value for key, value in tiny.state_dict("t2v").items()}
    path = written(tmp_path / "wan.gguf", weights, kind)
    plain = gguf_packs.loaded(pack, path)
    bare, patched = tiny.sample(plain), with_lora(plain)
    expected = [tiny.sample(with_lora(plain, strength)) for strength in (0.6, 1.0)]
    for args in ARGS:
        model = opened(path, **args)
        assert torch.equal(tiny.sample(model), bare), args
        held = holding_of(model.model)
        if args:
            assert 0 < held.plan.read_bytes_per_forward <= Path(path).stat().st_size
        for one, strength in zip(expected, (0.6, 1.0), strict=True):
            assert torch.equal(tiny.sample(with_lora(model, strength)), one), args
        assert torch.equal(tiny.sample(model), bare), args
        assert torch.equal(tiny.sample(model.clone()), bare), args
    assert torch.equal(tiny.sample(patched), expected[0])


@pytest.mark.parametrize("family", ["i2v", "vace", "ti2v-5b"])
def test_other_families(family: str, tmp_path: Path) -> None:
    path = written(tmp_path / "wan.gguf", tiny.state_dict(family))
    expected = tiny.sample(gguf_packs.loaded("stand-in", path))
    model = opened(path, blocks_to_swap=4, vace_blocks_to_swap=1, prefetch_blocks=2)
    assert torch.equal(tiny.sample(model), expected)


@by_pack
def test_merged_with_a_plain_model_in_a_file(pack: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "wan.gguf", tiny.state_dict("t2v", seed=1), kind)
    other = tiny.state_dict("t2v", seed=2)
    save_file(other, tmp_path / "wan.safetensors")
    plains = gguf_packs.loaded(pack, path), tiny.loaded(other)
    models = opened(path, blocks="0-3"), opened(str(tmp_path / "wan.safetensors"), blocks="1-4")
    merge = ModelMergeSimple().merge
    expected = tiny.sample(merge(*plains, 0.3)[0])
    assert not torch.equal(expected, tiny.sample(plains[0]))
    for pair in (models, (plains[0], models[1]), (models[0], plains[1])):
        assert torch.equal(tiny.sample(merge(*pair, 0.3)[0]), expected)
    if (pack, kind) == ("real", "Q8_0"):  # it tells of weights that are not there
        with pytest.raises(ModelError, match="as the second of a merge"):
            merge(models[1], models[0], 0.3)
    with pytest.raises(ModelError, match="load it with ComfyUI's own loader to save it"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), models[0])


@pytest.mark.parametrize("pack", gguf_packs.HOMES)
def test_a_third_of_the_model_is_enough(
    pack: str,
    sim: ModuleType,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A weight outside the blocks is cast to the dtype of its input, which takes 1 MiB.
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 2 << 20)
    path = written(tmp_path / "wan.gguf", tiny.state_dict("t2v", blocks=60))
    plain = gguf_packs.loaded(pack, path)
    expected = [tiny.sample(model, steps=1) for model in (plain, with_lora(plain))]
    management.unload_all_models()
    room = plain.model_size() // 3
    simulated.limit(sim, request, room)
    for model in (swapped(plain), swapped(plain, blocks="0-59"), opened(path)):
        for one, patched in zip(expected, (model, with_lora(model)), strict=True):
            assert torch.equal(tiny.sample(patched, steps=1), one)
            plan = holding_of(model.model).plan
            assert len(plan.streamed) > 30
            assert plan.device_bytes < room
        management.unload_all_models()


def _take_away(there: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    owner, last = there, name.rpartition(".")[2]
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    for base in inspect.getmro(owner) if inspect.isclass(owner) else (owner,):
        if getattr(base, "__module__", "").startswith("comfy."):
            continue  # what is left has the host's own
        if last in vars(base):
            patch.delattr(base, last)


def test_bytes_that_do_not_say_how_they_are_packed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "wan.gguf", tiny.state_dict("t2v"))
    there = gguf_packs.pack("stand-in")
    read = there.gguf_sd_loader
    for lost in ("a class of another name", *NOTES):

        def other(path: str, lost: str = lost) -> Any:
            found = read(path)
            for key, tensor in found.items():
                if lost in vars(tensor):
                    del vars(tensor)[lost]
                elif lost not in NOTES:
                    found[key] = tensor.as_subclass(torch.Tensor)
            return found

        monkeypatch.setattr(there, "gguf_sd_loader", other)
        with pytest.raises(HostError, match="it is not known how it is packed: update this pack"):
            opened(path)


def test_without_its_pack_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nodes

    path = written(tmp_path / "wan.gguf", tiny.state_dict("t2v"))
    gguf_packs.pack("stand-in")
    with pytest.raises(ModelError, match=r"weight_dtype fp8_e5m2 .* set it to default"):
        opened(path, "fp8_e5m2")
    there = gguf_packs.pack("stand-in")
    for name in gguf_pack.NAMES:
        with monkeypatch.context() as patch:
            _take_away(there, name, patch)
            with pytest.raises(HostError, match=f"ComfyUI-GGUF has no {name}, which a GGUF file"):
                opened(path)
    monkeypatch.delitem(nodes.NODE_CLASS_MAPPINGS, "UnetLoaderGGUF")
    with pytest.raises(ModelError, match=r"wan is a GGUF file.*install that pack, or use a"):
        opened(path)


@pytest.mark.skipif(not dynamic.HAS_DYNAMIC, reason="this core has no dynamic VRAM")
@by_pack
def test_under_dynamic_vram(
    pack: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack's own patcher is plain there, too; other models of the graph are not."""
    weights = tiny.state_dict("t2v")
    path = written(tmp_path / "wan.gguf", weights, kind)
    save_file(weights, tmp_path / "wan.safetensors")
    dynamic.switch_on(monkeypatch)
    other = comfy.sd.load_diffusion_model(str(tmp_path / "wan.safetensors"))
    assert host.is_dynamic(other)
    plain = gguf_packs.loaded(pack, path)
    bare, patched = tiny.sample(plain), with_lora(plain)
    expected, beside = tiny.sample(patched), tiny.sample(other)
    for args in ARGS:
        for model in (swapped(plain, **args), opened(path, **args)):
            assert torch.equal(tiny.sample(model), bare)
            assert holding_of(model.model).plan.streamed or not args
            assert torch.equal(tiny.sample(with_lora(model)), expected)
            assert torch.equal(tiny.sample(swapped(other, **args)), beside)
            assert torch.equal(tiny.sample(model), bare)
    assert torch.equal(tiny.sample(patched), expected)
    assert torch.equal(tiny.sample(plain), bare)


def _without(ending: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {k: v for k, v in weights.items() if not k.endswith(ending)}


def _wrong_shape(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {"blocks.2.ffn.0.weight": torch.randn(256, 64)}


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no bias": (_without("blocks.3.ffn.0.bias"), r"lacks 1 tensors.* blocks\.3\.ffn\.0\.bias"),
    "no weight": (_without("blocks.3.ffn.0.weight"), r"blocks\.3\.ffn\.0\.weight"),
    "no norm": (_without("blocks.1.self_attn.norm_q.weight"), r"blocks\.1\.self_attn\.norm_q"),
    "another shape": (_wrong_shape, r"blocks\.2\.ffn\.0\.weight"),
    "a stranger": (
        lambda w: w | {"blocks.0.adapter.weight": torch.randn(8, 32)},
        r"does not use, such as blocks\.0\.adapter\.weight",
    ),
    "a stranger in a linear": (
        lambda w: w | {"blocks.0.ffn.0.gate": torch.randn(32)},
        r"does not use, such as blocks\.0\.ffn\.0\.gate",
    ),
    "no model of Wan's": (lambda w: {"double_blocks.0.weight": torch.randn(8, 32)}, "no Wan model"),
}


@pytest.mark.parametrize("pack", gguf_packs.HOMES)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_not_the_model_is_refused(hostile: str, pack: str, tmp_path: Path) -> None:
    gguf_packs.pack(pack)
    change, said = HOSTILE[hostile]
    path = written(tmp_path / "wan.gguf", change(tiny.state_dict("t2v")))
    with pytest.raises(BlockSwapError, match=said):
        opened(path)
