"""Workflows as the page saves them, turned into what the server runs, and made small for tests.

The page's format lists a node's widget values in the order of its inputs; the server's names each.
The order is that of `/object_info`, which the running server gives.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .example_files import packed
from .server import REPOSITORY

Graph = dict[str, dict[str, Any]]
ObjectInfo = Mapping[str, Any]

WORKFLOWS = REPOSITORY / "example_workflows"
NOTES = ("Note", "MarkdownNote")  # the page draws them, the server does not know them
# What newer cores have made of a choice whose answers bring inputs of their own.
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
OURS = "BlockSwapWanVideo"

# Steps and pictures as small as they go with every part of the model still at work.
SMALL = {"width": 64, "height": 64, "length": 9}
STAND_INS = {
    "CLIPLoader": "TestTextEncoderLoader",
    "CLIPVisionLoader": "TestVisionEncoderLoader",
}


def load_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def to_prompt(workflow: Mapping[str, Any], info: ObjectInfo) -> Graph:
    """What the page would send for this workflow. Links are `[node id, slot]`."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, links, info)}
        for node in workflow["nodes"]
        if node["type"] not in NOTES
    }


def _inputs(node: Mapping[str, Any], links: Mapping[int, list[Any]], info: ObjectInfo) -> Graph:
    values = iter(node.get("widgets_values") or [])
    given: dict[str, Any] = {}
    saved = {slot["name"] for slot in node.get("inputs", [])}
    for name, kind, options in inputs_of(info[node["type"]]):
        if is_widget(kind, options) and name not in saved:
            given[name] = options["default"]  # of a core newer than the workflow
        elif is_widget(kind, options):
            given[name] = next(values)
            if options.get("control_after_generate"):
                next(values)
            if options.get("image_upload"):
                next(values, None)
        if kind == DYNAMIC:
            given |= _brought_by(name, given[name], options)
    for slot in node.get("inputs", []):
        if slot.get("link") is not None:
            given[slot["name"]] = links[slot["link"]]
    return given


def _brought_by(name: str, value: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that an answer to a dynamic choice brings, as they come with it."""
    found: dict[str, Any] = {}
    (chosen,) = (option for option in options["options"] if option["key"] == value)
    for each in chosen["inputs"].values():
        for inner, (kind, more) in each.items():
            full = f"{name}.{inner}"
            found[full] = more.get("default")
            if kind == DYNAMIC:
                found[full] = more["options"][0]["key"]
                found |= _brought_by(full, found[full], more)
    return found


def inputs_of(definition: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of each input of a node, in order."""
    for group in ("required", "optional"):
        for name in definition["input_order"].get(group, []):
            kind, *options = definition["input"][group][name]
            yield name, kind, (options[0] if options else {})


def is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    """Whether the page shows an input as a field of the node (a list is a choice)."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def small(prompt: Graph, *, steps: int = 2) -> Graph:
    """The same graph over a few frames of 64 x 64 pixels, with stand-ins for the large encoders
    and a node `<sampler>-latent` that saves what each sampler gives."""
    graph = copy.deepcopy(prompt)
    for key, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] in STAND_INS:
            node.update(class_type=STAND_INS[node["class_type"]], inputs={})
        inputs.update({name: size for name, size in SMALL.items() if name in inputs})
        if node["class_type"].startswith("KSampler"):
            _shorten(inputs, steps)
            saved = {"samples": [key, 0], "filename_prefix": f"latent-{key}"}
            graph[f"{key}-latent"] = {"class_type": "SaveLatent", "inputs": saved}
    return graph


def _shorten(inputs: dict[str, Any], steps: int) -> None:
    whole = inputs["steps"]
    inputs["steps"] = steps
    for name in ("start_at_step", "end_at_step"):
        if name in inputs:  # the page's 10000 means the end
            inputs[name] = min(inputs[name], whole) * steps // whole


def samplers(graph: Graph) -> list[str]:
    """The nodes that sample, in the order of the graph."""
    return [key for key, node in graph.items() if node["class_type"].startswith("KSampler")]


def without_ours(prompt: Graph) -> Graph:
    """The same graph as if this pack had never been: its nodes bridged, or the core's instead."""
    graph = copy.deepcopy(prompt)
    for key in [key for key, node in graph.items() if node["class_type"] == f"{OURS}Report"]:
        _drop_with_readers(graph, key)
    for key in [key for key, node in graph.items() if node["class_type"] == OURS]:
        _reconnect(graph, key, graph.pop(key)["inputs"]["model"])
    for key in [key for key, node in graph.items() if node["class_type"] == f"{OURS}Args"]:
        del graph[key]
    for node in graph.values():
        if node["class_type"] == f"{OURS}Loader":
            node["class_type"] = "UNETLoader"
            node["inputs"].pop("block_swap_args", None)
    return graph


def with_gguf(prompt: Graph) -> Graph:
    """The same graph with every model from its GGUF file, by the loader of the pack for them."""
    graph = copy.deepcopy(prompt)
    for node in graph.values():
        if node["class_type"] in ("UNETLoader", f"{OURS}Loader"):
            node["inputs"]["unet_name"] = packed(node["inputs"]["unet_name"])
        if node["class_type"] == "UNETLoader":
            node["class_type"] = "UnetLoaderGGUF"
            del node["inputs"]["weight_dtype"]
    return graph


def _drop_with_readers(graph: Graph, key: str) -> None:
    del graph[key]
    for reader in [other for other, node in graph.items() if key in _sources(node)]:
        _drop_with_readers(graph, reader)


def _reconnect(graph: Graph, old: str, source: list[Any]) -> None:
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == old:
                node["inputs"][name] = source


def _sources(node: Mapping[str, Any]) -> set[str]:
    return {value[0] for value in node["inputs"].values() if isinstance(value, list)}


def of_class(graph: Graph, class_type: str) -> list[str]:
    """The nodes of this class, in the order of the graph."""
    return [key for key, node in graph.items() if node["class_type"] == class_type]


def with_args(graph: Graph, **values: Any) -> Graph:
    """The same graph with one args node of ours, saying `values`, at every node that takes one."""
    changed = copy.deepcopy(graph)
    for key in of_class(changed, f"{OURS}Args"):
        del changed[key]
    changed["args"] = {"class_type": f"{OURS}Args", "inputs": {**ARGS, **values}}
    for node in changed.values():
        if node["class_type"] in (OURS, f"{OURS}Loader"):
            node["inputs"]["block_swap_args"] = ["args", 0]
    return changed


# The args node as it comes out of the menu.
ARGS: Mapping[str, Any] = {
    "blocks": "",
    "blocks_to_swap": -1,
    "vram_budget": "",
    "ram_budget": "",
    "offload_txt_emb": False,
    "offload_img_emb": False,
    "prefetch_blocks": -1,
    "vace_blocks_to_swap": -1,
    "use_non_blocking": True,
    "block_swap_debug": False,
}
