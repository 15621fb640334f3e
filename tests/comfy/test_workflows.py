"""The example workflows: whole, connected, and equal to the same graph without this pack."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_host import graphs
from comfy_host.client import Client
from comfy_host.graphs import Graph, ObjectInfo

WORKFLOWS = sorted(graphs.WORKFLOWS.glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
NEWER = "BLOCKSWAP_COMFYUI" in os.environ  # a core at hand, not the one the workflows are from
ASKED = {
    "as it is": None,
    "list": {"blocks": "0,2,3-5"},
    "one block": {"blocks": "5"},
    "count": {"blocks_to_swap": 3},
    "all": {"blocks_to_swap": 6, "prefetch_blocks": 1},
    "automatic": {},
}


def latents(comfy: Client, graph: Graph) -> list[torch.Tensor]:
    """What each sampler of the graph gave, in order."""
    outcome = comfy.run_well(graph)
    return [comfy.latent(outcome, f"{key}-latent") for key in graphs.samplers(graph)]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        assert mine.float().std() > 0.1
        assert torch.equal(mine, other)


@pytest.fixture(scope="module")
def expected(comfy: Client, info: ObjectInfo):
    """Latents of a small graph without this pack's nodes, sampled once."""
    done: dict[str, list[torch.Tensor]] = {}

    def of(path: Path) -> list[torch.Tensor]:
        if path.stem not in done:
            done[path.stem] = latents(comfy, graphs.without_ours(small(path, info)))
        return done[path.stem]

    return of


def small(path: Path, info: ObjectInfo) -> Graph:
    return graphs.small(graphs.to_prompt(graphs.load_workflow(path), info))


def test_there_are_the_four_that_the_documents_promise():
    assert NAMES == [
        "wan2.1_image_to_video",
        "wan2.1_low_ram",
        "wan2.1_text_to_video",
        "wan2.2_two_experts",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_no_node_of_a_workflow_is_missing(path: Path, info: ObjectInfo):
    nodes = graphs.load_workflow(path)["nodes"]
    types = {node["type"] for node in nodes} - set(graphs.NOTES)
    assert types <= info.keys()
    foreign = {kind for kind in types if info[kind]["python_module"].startswith("custom_nodes")}
    assert foreign  # ours, and nobody else's
    assert all(kind.startswith(graphs.OURS) for kind in foreign)


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_the_links_of_a_workflow_fit_its_nodes(path: Path, info: ObjectInfo):
    workflow = graphs.load_workflow(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, out, target, into, kind in workflow["links"]:
        output, slot = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"]
        assert slot["link"] == number
        types = set(str(output["type"]).split(",")), set(str(slot["type"]).split(","))
        assert kind in types[0]
        assert "*" in types[1] or kind in types[1]
    linked = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"]]
    assert sorted(linked) == sorted(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_the_slots_and_values_of_a_workflow_are_those_of_the_node(path: Path, info: ObjectInfo):
    for node in graphs.load_workflow(path)["nodes"]:
        if node["type"] in graphs.NOTES:
            continue
        definition = info[node["type"]]
        inputs = {name: (kind, options) for name, kind, options in graphs.inputs_of(definition)}
        slots = {slot["name"] for slot in node["inputs"]}
        # A newer core may have given one of its nodes another widget: the page fills it in.
        added = {name: inputs.pop(name) for name in inputs.keys() - slots}
        assert slots == inputs.keys()
        assert all("default" in options for _, options in added.values())
        assert not added or NEWER
        outputs = [slot["name"] for slot in node["outputs"]]
        # ... and another output, behind those that there were.
        assert outputs == definition["output_name"][: len(outputs)]
        assert len(outputs) == len(definition["output_name"]) or NEWER
        for value, (name, options) in zip(
            _widget_values(node, inputs), _widgets(inputs), strict=True
        ):
            assert _allowed(value, options), (node["type"], name, value)


def _widgets(inputs: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, {"kind": kind, **options})
        for name, (kind, options) in inputs.items()
        if graphs.is_widget(kind, options)
    ]


def _widget_values(node: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
    values = list(node["widgets_values"])
    kept = []
    for _name, options in _widgets(inputs):
        kept.append(values.pop(0))
        if options.get("control_after_generate") or options.get("image_upload"):
            values.pop(0)
    assert values == []
    return kept


def _allowed(value: Any, options: Mapping[str, Any]) -> bool:
    choices = options["kind"] if isinstance(options["kind"], list) else options.get("options")
    if choices is not None:
        return value in [c["key"] if isinstance(c, dict) else c for c in choices]
    if isinstance(value, str | bool):
        return options["kind"] == ("BOOLEAN" if isinstance(value, bool) else "STRING")
    return options.get("min", value) <= value <= options.get("max", value)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_gives_what_it_gives_without_us(
    path: Path, asked: dict[str, Any] | None, comfy: Client, info: ObjectInfo, expected
):
    graph = small(path, info)
    if asked is not None:
        graph = graphs.with_args(graph, **asked)
    assert_same(latents(comfy, graph), expected(path))
