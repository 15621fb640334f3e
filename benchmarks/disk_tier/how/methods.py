"""The methods: how each gets a model to run whose weights are in a file. Imported in children only.

A method is `prepare(folder)`, outside of any limit and not counted in time, and `open(folder)`,
which returns something to call with the inputs of a forward.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.disk_tier.how.folder import Folder, config, read_model
from benchmarks.disk_tier.what import OURS, RESIDENT

Forward = Callable[..., Any]
AIRCANVAS = "aircanvas==0.1.0"


@dataclass(frozen=True, slots=True)
class Method:
    """`limited`: whether it runs under the memory limit of its row."""

    open: Callable[[Folder], Forward]
    prepare: Callable[[Folder], None] | None = None
    limited: bool = True


def empty_model(folder: Folder) -> torch.nn.Module:
    """diffusers' class with parameters on meta, in the file's dtype, and its computed buffers."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    wanted = read_model(folder.root)
    with init_empty_weights(include_buffers=False):
        model = WanTransformer3DModel(**config(wanted))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, wanted.dtype))
    return model.eval()


def mapped_model(checkpoint: Path, folder: Folder) -> torch.nn.Module:
    """Parameters are pages of the mapped file: read when touched, dropped when memory is short."""
    from safetensors.torch import load_file

    model = empty_model(folder)
    model.load_state_dict(load_file(checkpoint), assign=True)
    return model


def all_in_ram(folder: Folder) -> Forward:
    model = mapped_model(folder.checkpoint, folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def ours(folder: Folder) -> Forward:
    from blockswap import BlockSwapArgs, open_transformer

    args = BlockSwapArgs(blocks_to_swap=read_model(folder.root).blocks)
    return open_transformer(folder.checkpoint, args, device="cpu")


def _own_copy(method: str) -> Callable[[Folder], None]:
    """A page is charged to who touched it first: methods that use the cache share no file."""

    def prepare(folder: Folder) -> None:
        folder.of(method).mkdir()
        shutil.copyfile(folder.checkpoint, folder.of(method) / folder.checkpoint.name)

    return prepare


def safetensors_mmap(folder: Folder) -> Forward:
    return mapped_model(folder.of("safetensors mmap") / folder.checkpoint.name, folder)


def accelerate_safetensors(folder: Folder) -> Forward:
    """accelerate's hooks on each block, with weights out of the original file."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from accelerate.utils import OffloadedWeightsLoader
    from safetensors.torch import load_file

    model: Any = empty_model(folder)
    checkpoint = folder.of("accelerate from safetensors") / folder.checkpoint.name
    stored = load_file(checkpoint)
    rest = {name: value.clone() for name, value in stored.items() if "blocks." not in name}
    model.load_state_dict(rest, assign=True, strict=False)
    path = str(checkpoint)
    names = [name for name in stored if name not in rest]
    del stored
    for number, block in enumerate(model.blocks):
        prefix = f"blocks.{number}."
        index = {
            name.removeprefix(prefix): {"safetensors_file": path, "weight_name": name}
            for name in names
            if name.startswith(prefix)
        }
        weights = OffloadedWeightsLoader(save_folder=str(folder.transformer), index=index)
        hook = AlignDevicesHook(
            execution_device="cpu", offload=True, weights_map=weights, place_submodules=True
        )
        add_hook_to_module(block, hook)
    return model


def prepare_accelerate_disk(folder: Folder) -> None:
    from accelerate.utils import offload_state_dict

    state = mapped_model(folder.checkpoint, folder).state_dict()
    offload_state_dict(str(folder.of("accelerate disk_offload")), state)


def accelerate_disk(folder: Folder) -> Forward:
    from accelerate import disk_offload

    where = str(folder.of("accelerate disk_offload"))
    return disk_offload(empty_model(folder), where, execution_device=torch.device("cpu"))


def _group_offload(folder: Folder) -> Any:
    model: Any = mapped_model(folder.checkpoint, folder)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(folder.of("diffusers group offload")),
    )
    return model


def prepare_group_offload(folder: Folder) -> None:
    _group_offload(folder)


def prepare_aircanvas(folder: Folder) -> None:
    target = folder.of("aircanvas") / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(target), AIRCANVAS], check=True)
    sys.path.append(str(target))
    from aircanvas.sharding.splitter import split_model

    split_model(str(folder.root), cache_dir=folder.of("aircanvas") / "cache", compute_dtype=None)


def aircanvas(folder: Folder) -> Forward:
    sys.path.append(str(folder.of("aircanvas") / "site"))
    from aircanvas.sharding.manifest import Manifest
    from aircanvas.streaming.engine import StreamingEngine

    cache: Path = folder.of("aircanvas") / "cache"
    model = empty_model(folder)
    engine = StreamingEngine(model, Manifest.load(cache), cache, device="cpu")

    def forward(**inputs: Any) -> Any:
        assert engine is not None  # it lives as long as its model is run
        return model(**inputs)

    return forward


METHODS: dict[str, Method] = {
    RESIDENT: Method(all_in_ram, limited=False),
    OURS: Method(ours),
    "safetensors mmap": Method(safetensors_mmap, _own_copy("safetensors mmap")),
    "accelerate from safetensors": Method(
        accelerate_safetensors, _own_copy("accelerate from safetensors")
    ),
    "accelerate disk_offload": Method(accelerate_disk, prepare_accelerate_disk),
    "diffusers group offload": Method(_group_offload, prepare_group_offload),
    "aircanvas": Method(aircanvas, prepare_aircanvas),
}
