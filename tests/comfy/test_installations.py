"""Other ways in which the pack is found: cloned and nothing else, and beside the wrapper pack."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from comfy_host import graphs, server
from comfy_host.client import Client, Rejected
from comfy_host.environment import Environment
from comfy_host.example_files import T2V
from comfy_host.graphs import ARGS, OURS
from comfy_host.sampling import Sampled, prompt

WRAPPER = Path(server.__file__).with_name("packs") / "wrapper_stand_in"
THEIRS = ("WanVideoBlockSwap", "WanVideoSetBlockSwap", "WanVideoBlockList")
Base = Callable[[str], Path]


def test_a_clone_in_custom_nodes_works_with_nothing_else(environment: Environment, base: Base):
    root = base("cloned")
    target = root / "custom_nodes" / "ComfyUI-wanvideo-blockswap"
    if not (shutil.which("git") and (server.REPOSITORY / ".git").exists()):
        pytest.skip("needs git, and a clone of the repository to clone from")
    subprocess.run(["git", "clone", "--quiet", server.REPOSITORY, target], check=True)
    known = "import importlib.util; print(importlib.util.find_spec('blockswap'))"
    asked = subprocess.run(
        [environment.python, "-I", "-c", known], check=True, capture_output=True, text=True
    )
    assert asked.stdout.strip() == "None"  # not installed in ComfyUI's Python
    packs = {name: path for name, path in server.default_packs().items() if name != server.PACK}
    with server.running(server.Launch(environment, root, packs)) as running:
        comfy = Client(running)
        info = comfy.get("/object_info")
        assert info[OURS]["python_module"] == f"custom_nodes.{target.name}"
        swapped = prompt(Sampled(T2V).swapped(blocks_to_swap=6))
        ours = comfy.latent(comfy.run_well(swapped), "latent")
        theirs = comfy.latent(comfy.run_well(prompt(Sampled(T2V))), "latent")
        assert torch.equal(ours, theirs)


@pytest.fixture(scope="module", params=["wrapper first", "wrapper last"])
def both(request, environment: Environment, base: Base) -> Iterator[Client]:
    """A ComfyUI with our pack and the wrapper's stand-in, which is loaded first or last."""
    root = base("both")
    packs = dict(server.default_packs())
    packs[_name(root, packs, first=request.param == "wrapper first")] = WRAPPER
    with server.running(server.Launch(environment, root, packs)) as running:
        yield Client(running)


def _name(root: Path, packs: dict[str, Path], *, first: bool) -> str:
    """A folder name with which the file system lists the wrapper before, or after, our pack.

    ComfyUI loads packs in the order of `os.listdir`, which no name alone decides.
    """
    for number in range(200):
        trial = root / f"order{number}"
        trial.mkdir()
        name = f"ComfyUI-WanVideoWrapper{number or ''}"
        for pack in (*packs, name):
            (trial / pack).symlink_to(root)
        order = os.listdir(trial)
        shutil.rmtree(trial)
        if (order.index(name) < order.index(server.PACK)) == first:
            return name
    raise AssertionError("no name gives this order")


def test_every_id_belongs_to_whom_it_is_known_from(both: Client):
    info = both.get("/object_info")
    for key in THEIRS:
        assert "WanVideoWrapper" in info[key]["python_module"], key
    for key in (OURS, f"{OURS}Args", f"{OURS}Loader", f"{OURS}Report"):
        assert info[key]["python_module"] == f"custom_nodes.{server.PACK}", key


def test_their_args_drive_our_node(both: Client):
    graph = prompt(Sampled(T2V).swapped(blocks="1"))
    theirs = {"blocks_to_swap": 3, "offload_img_emb": False, "offload_txt_emb": True}
    graph["chain0-args"] = {"class_type": "WanVideoBlockSwap", "inputs": theirs}
    ours = both.latent(both.run_well(graph), "latent")
    assert torch.equal(ours, both.latent(both.run_well(prompt(Sampled(T2V))), "latent"))


def test_our_args_drive_their_node(both: Client):
    ran = _their_run(both, "WanVideoSetBlockSwap", {"blocks_to_swap": 7})
    assert ran["asked"]["blocks_to_swap"] == 7


def test_our_node_takes_a_model_of_theirs_over(both: Client):
    """On the CPU: the latents of their swap, which has moved nothing."""
    theirs = _their_run(both, "WanVideoSetBlockSwap", {"blocks_to_swap": 3})
    ours = _their_run(both, OURS, {"blocks_to_swap": 3, "vace_blocks_to_swap": 0})
    assert theirs["moved"]
    assert ours["moved"] == []
    assert ours["latents"] == theirs["latents"]


def test_our_node_knows_the_blocks_of_their_model(both: Client):
    both.free()
    failed = both.run(_their_graph(OURS, {"blocks": "38-41"})).event("execution_error")
    assert failed is not None
    assert "Invalid range: '38-41': the model has blocks 0-5" in failed["exception_message"]


def test_our_node_checks_what_it_hands_over(both: Client):
    with pytest.raises(Rejected) as caught:
        _their_run(both, OURS, {"blocks": "3-1"})
    assert "Invalid range: '3-1'" in caught.value.text_of("args")


def _their_graph(node: str, asked: dict[str, object]) -> dict:
    return {
        "model": {"class_type": "WanVideoModelLoader", "inputs": {}},
        "args": {"class_type": f"{OURS}Args", "inputs": {**ARGS, **asked}},
        "set": {
            "class_type": node,
            "inputs": {"model": ["model", 0], "block_swap_args": ["args", 0]},
        },
        "sampler": {"class_type": "WanVideoSampler", "inputs": {"model": ["set", 0]}},
    }


def _their_run(both: Client, node: str, asked: dict[str, object]) -> dict:
    """What their sampler tells of a run: its arguments, what its own swap moved, latents."""
    both.free()
    (text,) = both.run_well(_their_graph(node, asked)).outputs["sampler"]["text"]
    return json.loads(text)


@pytest.mark.parametrize(
    "path", sorted(graphs.WORKFLOWS.glob("*.json")), ids=lambda path: path.stem
)
def test_an_example_workflow_runs_beside_the_wrapper_as_without_us(path: Path, both: Client):
    info = both.get("/object_info")
    graph = graphs.small(graphs.to_prompt(graphs.load_workflow(path), info))
    both.free()
    ours, theirs = both.run_well(graph), both.run_well(graphs.without_ours(graph))
    for key in graphs.samplers(graph):
        assert torch.equal(both.latent(ours, f"{key}-latent"), both.latent(theirs, f"{key}-latent"))
