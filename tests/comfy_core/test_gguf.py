"""Models that a GGUF pack has loaded, by its own tensors and layers, with block swap on them.

With a stand-in for the pack, and with the real one where `BLOCKSWAP_GGUF` names its folder.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.sd
import numpy as np
import packed
import pytest
import simulated
import tiny
import torch
from tiny import swapped

from blockswap.nodes.holding import holding_of

PACK = os.environ.get("BLOCKSWAP_GGUF")
KINDS = ["stand-in", *(["Q8_0", "Q4_0", "Q5_1"] if PACK else [])]
pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


@lru_cache
def real_pack() -> Any:
    assert PACK is not None
    home = Path(PACK)
    for name, file in (("gguf_pack", "__init__.py"), ("gguf_pack.loader", "loader.py"),
                       ("gguf_pack.ops", "ops.py"), ("gguf_pack.nodes", "nodes.py")):  # fmt: skip
        spec: Any = importlib.util.spec_from_file_location(
            name, home / file, submodule_search_locations=[str(home)] if "." not in name else None
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if name != "gguf_pack":
            spec.loader.exec_module(module)
    return SimpleNamespace(**{n: sys.modules[f"gguf_pack.{n}"] for n in ("loader", "ops", "nodes")})


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.computing_on(sim_device, monkeypatch)


def written(path: Path, weights: dict[str, torch.Tensor], kind: str) -> str:
    import gguf

    quant = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "wan")
    for key, value in weights.items():
        array = value.float().numpy()
        if tiny._is_linear_of_a_block(key, value):
            packed = gguf.quantize(array, quant)
            writer.add_tensor(key, packed, raw_dtype=quant)
        else:
            writer.add_tensor(key, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def loaded(kind: str, folder: Path) -> Any:
    weights = tiny.state_dict("t2v")
    if kind == "stand-in":
        state: dict[str, Any] = {
            key: packed.pack(value) if tiny._is_linear_of_a_block(key, value) else value
            for key, value in weights.items()
        }
        ops, patcher = packed.Ops, packed.GGUFModelPatcher
    else:
        pack = real_pack()
        state = pack.loader.gguf_sd_loader(written(folder / "wan.gguf", weights, kind))
        state = state[0] if isinstance(state, tuple) else state
        ops, patcher = pack.ops.GGMLOps(), pack.nodes.GGUFModelPatcher
    options = {"custom_operations": ops}
    return patcher.clone(comfy.sd.load_diffusion_model_state_dict(state, model_options=options))


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_as_packed_with_and_without_a_lora(kind: str, tmp_path: Path) -> None:
    plain = loaded(kind, tmp_path)
    bare = tiny.sample(plain)
    lora = tiny.lora_of(tiny.model("t2v"))  # a packed model does not tell its true shapes

    def with_lora(patcher: Any) -> Any:
        return comfy.sd.load_lora_for_models(patcher, None, lora, 0.6, 0)[0]

    patched = with_lora(plain)
    expected = tiny.sample(patched)
    assert not torch.equal(bare, expected)

    for args in ({"blocks": "0,2-4"}, {"blocks_to_swap": 6}, {}):
        assert torch.equal(tiny.sample(swapped(plain, **args)), bare)
        held = holding_of(plain.model)
        streamed = [unit.slab_bytes for unit in held.plan.units if unit.tier != "resident"]
        whole = 2 * sum(p.size().numel() for p in plain.model.diffusion_model.blocks.parameters())
        assert sum(streamed) < whole
        assert torch.equal(tiny.sample(swapped(patched, **args)), expected)
        assert torch.equal(tiny.sample(with_lora(swapped(plain, **args))), expected)
    assert torch.equal(tiny.sample(plain), bare)
    assert torch.equal(tiny.sample(patched), expected)
