"""GGUF models over HTTP: the example workflows from GGUF files, as without this pack.

By a stand-in for the pack ComfyUI-GGUF, or by the real one where `BLOCKSWAP_GGUF` names its folder.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_workflows import NAMES, WORKFLOWS, assert_same, latents, small

from comfy_host import graphs
from comfy_host.client import Client
from comfy_host.graphs import OURS, Graph, ObjectInfo

ASKED = {"as it is": None, "list": {"blocks": "0,2,3-5"}}


@pytest.fixture(scope="module")
def expected(comfy: Client, info: ObjectInfo):
    """Latents of a small graph from GGUF files, without this pack's nodes, sampled once."""
    done: dict[str, list[torch.Tensor]] = {}

    def of(path: Path) -> list[torch.Tensor]:
        if path.stem not in done:
            plain = graphs.with_gguf(graphs.without_ours(small(path, info)))
            done[path.stem] = latents(comfy, plain)
        return done[path.stem]

    return of


def ours(path: Path, info: ObjectInfo, asked: dict[str, Any] | None) -> Graph:
    graph = graphs.with_gguf(small(path, info))
    return graph if asked is None else graphs.with_args(graph, **asked)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_gives_what_it_gives_without_us(
    path: Path, asked: dict[str, Any] | None, comfy: Client, info: ObjectInfo, expected
):
    assert_same(latents(comfy, ours(path, info, asked)), expected(path))


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_our_loader_in_place_of_the_packs(path: Path, comfy: Client, info: ObjectInfo, expected):
    graph = graphs.without_ours(small(path, info))
    for node in graph.values():
        if node["class_type"] == "UNETLoader":
            node["class_type"] = f"{OURS}Loader"
    graph = graphs.with_args(graphs.with_gguf(graph), blocks="0,2,3-5")
    comfy.free()  # the graph may be one of the above
    assert_same(latents(comfy, graph), expected(path))


def test_they_are_other_models_than_the_ones_they_were_packed_from(
    comfy: Client, info: ObjectInfo, expected
):
    """So the above has run what the GGUF files hold."""
    path = WORKFLOWS[NAMES.index("wan2.1_text_to_video")]
    plain = latents(comfy, graphs.without_ours(small(path, info)))
    assert not torch.equal(plain[0], expected(path)[0])
