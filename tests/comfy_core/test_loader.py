"""The low-RAM loader: the same latents, and no block in memory that is not running."""

from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import tiny
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from safetensors.torch import save_file

from blockswap import BlockSwapArgs
from blockswap.errors import ModelError
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.clone.overrides import plan_text
from blockswap.nodes.clone.patcher import swap_on_clone
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams.host_checkpoints import WEIGHT_DTYPES


def saved(path: Path, weights: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    file = path / "wan.safetensors"
    save_file(weights, file, metadata)
    return str(file)


def opened(path: str, **args: Any) -> Any:
    return load_streamed(path, Wish(BlockSwapArgs(**args)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    weights = tiny.state_dict(family)
    expected = tiny.sample(tiny.loaded(weights))
    path = saved(tmp_path, weights)
    for args in ({}, {"blocks": "0,2-4"}, {"blocks_to_swap": 3, "offload_txt_emb": True}):
        model = opened(path, **args)
        assert torch.equal(tiny.sample(model), expected), args
        holding = holding_of(model.model)
        assert holding is not None
        assert holding.plan.read_bytes_per_forward > 0
        assert torch.equal(tiny.sample(model), expected), args


def test_a_module_without_its_model_is_said_to_be_one(tmp_path: Path) -> None:
    weights = tiny.state_dict("vace")
    module = {key: value for key, value in weights.items() if key.startswith("vace_")}
    with pytest.raises(ModelError, match="a module of Wan VACE without the model"):
        opened(saved(tmp_path, module))


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp8_scaled", "prefixed"])
def test_forms_of_checkpoint_with_a_lora(kind: str, tmp_path: Path) -> None:
    weights = tiny.state_dict("t2v", torch.float16 if kind == "fp16" else torch.bfloat16)
    if kind == "fp8_scaled":
        weights = tiny.fp8_scaled(weights)
    plain = tiny.loaded(weights)
    if kind == "prefixed":
        weights = {f"model.diffusion_model.{key}": value for key, value in weights.items()}
    model = opened(saved(tmp_path, weights), blocks="0-3")
    assert torch.equal(tiny.sample(model), tiny.sample(plain))
    for strength in (1.0, 0.4):
        expected = tiny.sample(tiny.with_lora(plain, strength))
        assert torch.equal(tiny.sample(tiny.with_lora(model, strength)), expected)
    assert torch.equal(tiny.sample(model), tiny.sample(plain))


def test_blocks_have_no_memory_between_runs(tmp_path: Path) -> None:
    import comfy.model_management

    model = opened(saved(tmp_path, tiny.state_dict("t2v")))
    tiny.sample(model)
    comfy.model_management.unload_all_models()
    root = model.model.diffusion_model
    where = {name: p.device.type for name, p in root.named_parameters()}
    assert {d for n, d in where.items() if n.startswith("blocks.")} == {"meta"}
    assert where["head.head.weight"] == "cpu"
    assert holding_of(model.model) is None
    assert torch.isfinite(tiny.sample(model)).all()


@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weight_dtypes_are_those_of_the_hosts_loader(
    weight_dtype: str, stored: torch.dtype, tmp_path: Path
) -> None:
    dtype, fast = WEIGHT_DTYPES[weight_dtype]
    options = {"fp8_optimizations": True} if fast else {}
    if dtype is not None:
        options["dtype"] = dtype
    weights = tiny.state_dict("t2v", stored)
    plain = comfy.sd.load_diffusion_model_state_dict(dict(weights), model_options=options)
    wish = Wish(BlockSwapArgs(blocks="0-3"))
    model = load_streamed(saved(tmp_path, weights), wish, weight_dtype)
    for one, other in ((model, plain), (tiny.with_lora(model, 0.6), tiny.with_lora(plain, 0.6))):
        assert torch.equal(tiny.sample(one), tiny.sample(other))


def test_a_merge_of_two_models_in_files(tmp_path: Path) -> None:
    plains, models = [], []
    for seed in (1, 2):
        weights = tiny.state_dict("t2v", seed=seed)
        plains.append(tiny.loaded(weights))
        (tmp_path / str(seed)).mkdir()
        models.append(opened(saved(tmp_path / str(seed), weights), blocks="0-3"))
    merge = ModelMergeSimple().merge
    expected = tiny.sample(merge(*plains, 0.3)[0])
    tiny.sample(models[1])  # some of its blocks are on the device now
    for pair in (models, (plains[0], models[1]), (models[0], plains[1])):
        assert torch.equal(tiny.sample(merge(*pair, 0.3)[0]), expected)


def test_saving_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = opened(saved(tmp_path, tiny.state_dict("t2v")), blocks="0-3")
    target = tmp_path / "saved.safetensors"
    with pytest.raises(ModelError, match="load it with ComfyUI's own loader to save it"):
        comfy.sd.save_checkpoint(str(target), tiny.with_lora(model, 0.6))
    assert not target.exists()


def test_what_the_host_saves_behind_the_swap_node(tmp_path: Path) -> None:
    plain = tiny.with_lora(tiny.model("t2v"), 0.6)
    files = []
    for number, model in enumerate(
        (plain, swap_on_clone(plain, Wish(BlockSwapArgs(blocks="1-3"))))
    ):
        tiny.sample(model)
        files.append(tmp_path / str(number))
        comfy.sd.save_checkpoint(str(files[-1]), model)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_plan_is_told_before_the_run(tmp_path: Path) -> None:
    model = opened(saved(tmp_path, tiny.state_dict("t2v")), blocks="0,2-4")
    told = plan_text(model)
    held = len(model.model.blockswap_files.names)
    assert told.startswith(f"plan: {held - 4} of {held} units stay, 4 are streamed (")
    assert "blocks dRdddR" in told
    assert " that are free now" in told
