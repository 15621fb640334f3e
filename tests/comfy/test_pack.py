"""What the pack shows beside its nodes: tooltips, languages, help pages, registry metadata."""

import json
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import tomllib

from comfy_host import graphs
from comfy_host.client import Client
from comfy_host.example_files import T2V
from comfy_host.graphs import ObjectInfo
from comfy_host.server import PACK, REPOSITORY

LANGUAGES = ("en", "zh", "ja")
NODES = (
    "BlockSwapWanVideo",
    "BlockSwapWanVideoArgs",
    "BlockSwapWanVideoLoader",
    "BlockSwapWanVideoReport",
)
ALIAS = "WanVideoBlockSwap"  # the mission's id, for prompts that were saved with it
MENU = dict(
    zip(
        NODES,
        (
            "WanVideo Block Swap",
            "WanVideo Block Swap Args",
            "Load Wan Model (Block Swap)",
            "WanVideo Block Swap Report",
        ),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def ours(info: ObjectInfo) -> dict[str, Any]:
    """The definitions of this pack's nodes."""
    module = f"custom_nodes.{PACK}"
    return {key: node for key, node in info.items() if node["python_module"] == module}


def shown(definition: dict[str, Any]) -> dict[str, Any]:
    """A node's texts as the page takes them, in the form of a locale file without the names."""
    return {
        "description": definition["description"],
        "inputs": {
            name: options.get("tooltip") for name, _, options in graphs.inputs_of(definition)
        },
        "outputs": {
            str(slot): tooltip for slot, tooltip in enumerate(definition["output_tooltips"])
        },
    }


def translated(language: str) -> dict[str, Any]:
    path = REPOSITORY / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_nodes_are_the_four_of_the_menu_and_the_hidden_alias(ours):
    assert set(ours) == {*NODES, ALIAS}
    assert {key: ours[key]["display_name"] for key in NODES} == MENU
    assert not any(ours[key].get("deprecated") for key in NODES)


def test_every_node_input_and_output_says_what_it_is(ours):
    for key, definition in ours.items():
        texts = shown(definition)
        said = [texts["description"], *texts["inputs"].values(), *texts["outputs"].values()]
        assert all(isinstance(text, str) and len(text) > 15 for text in said), (key, said)
        assert len(texts["outputs"]) == len(definition["output"])


def test_english_is_what_the_nodes_themselves_say(ours):
    for key, texts in translated("en").items():
        assert shown(ours[key]) == {
            "description": texts["description"],
            "inputs": {name: text["tooltip"] for name, text in texts["inputs"].items()},
            "outputs": {slot: text["tooltip"] for slot, text in texts["outputs"].items()},
        }
        assert texts["display_name"] == ours[key]["display_name"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text_of_every_node_and_no_other(language, ours):
    texts = translated(language)
    assert texts.keys() == ours.keys()
    for key, definition in ours.items():
        names = {name for name, _, _ in graphs.inputs_of(definition)}
        assert texts[key]["inputs"].keys() == names
        assert texts[key]["outputs"].keys() == shown(definition)["outputs"].keys()
        for text in (*texts[key]["inputs"].values(), *texts[key]["outputs"].values()):
            assert text["name"].strip()
            assert text["tooltip"].strip()
        assert texts[key]["display_name"].strip()
        assert texts[key]["description"].strip()


def test_the_server_offers_the_languages_to_the_page(comfy: Client):
    offered = comfy.get("/i18n")
    for language in LANGUAGES:
        assert translated(language).items() <= offered[language]["nodeDefs"].items()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_the_page_finds_a_help_page_where_it_asks_for_it(node, language, comfy: Client, ours):
    page = help_page(comfy, node, language)
    assert page.startswith("# ")
    for name, _, _ in graphs.inputs_of(ours[node]):
        assert f"`{name}`" in page, f"{node} in {language} does not tell of {name}"


def help_page(comfy: Client, node: str, language: str) -> str:
    """As the page does it: the language's own, else the one for all."""
    folder = f"/extensions/{PACK}/docs"
    try:
        return comfy.get_text(f"{folder}/{node}/{language}.md")
    except urllib.error.HTTPError as error:
        assert error.code == 404
        assert language == "en"
        return comfy.get_text(f"{folder}/{node}.md")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"plan: \d of 7 units stay, .* of weights and slots on cpu fit in the"),
        ({"args": {"blocks": "0,2-4"}}, "plan: 3 of 7 units stay, 4 are streamed"),
        ({"args": {"blocks": "3-1"}}, "plan: Invalid range: '3-1'"),
        ({"args": {"blocks": "38-41"}}, "plan: Invalid range: '38-41': the model has blocks 0-5"),
        ({"args": {"vram_budget": "8"}}, "plan: vram_budget='8' has no unit: write 8GiB"),
        ({"file": "none.safetensors"}, "plan: none.safetensors is not in models/diffusion_models"),
        ({"loader": None}, "plan: no loader was found in front of this node"),
        (
            {"loader": "WanVideoModelLoader"},
            "plan: the pack of the node WanVideoModelLoader is not installed",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("loader", ["BlockSwapWanVideoLoader", "UNETLoader"])
def test_the_page_is_told_the_plan_before_a_run(asked, said, loader, comfy: Client):
    comfy.free()
    question = {"node_id": "1", "loader": loader, "file": T2V, "weight_dtype": "default"}
    question |= {"args_node": "BlockSwapWanVideoArgs", **asked}
    told = comfy.post("/blockswap/plan", question)["text"]
    assert re.match(said, told), told


def test_the_templates_browser_lists_the_example_workflows(comfy: Client):
    listed = comfy.get("/workflow_templates")[PACK]
    assert sorted(listed) == sorted(path.stem for path in graphs.WORKFLOWS.glob("*.json"))
    for name in listed:
        served = comfy.get(f"/api/workflow_templates/{PACK}/{name}.json")
        assert served == graphs.load_workflow(graphs.WORKFLOWS / f"{name}.json")


def test_nothing_of_the_pack_troubles_the_start(comfy: Client):
    # What comes after this line was said by prompts of other tests that share the server.
    start, found, _ = comfy.server.log.partition("To see the GUI go to")
    assert found
    for line in start.splitlines():
        if "wanvideo-blockswap" in line.lower() or "pyproject" in line:
            assert not any(word in line for word in ("Error", "error", "Cannot", "Unable", "Skip"))


def test_what_the_registry_reads_is_there():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "WanVideo Block Swap"
    assert comfy["PublisherId"]
    assert comfy["requires-comfyui"].startswith(">=")
    assert (REPOSITORY / comfy["Icon"]).is_file()
    version = project["project"]["version"].split(".")
    assert len(version) == 3  # the registry takes X.Y.Z only
    assert all(part.isdecimal() for part in version)


def test_installing_the_requirements_installs_nothing():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []


def test_what_the_registry_leaves_out_is_not_needed_to_run():
    ignored = (REPOSITORY / ".comfyignore").read_text(encoding="utf-8").split()
    kept = ("__init__.py", "src", "web", "locales", "example_workflows", "LICENSE", "README.md")
    for name in kept:
        assert (REPOSITORY / name).exists()
        assert not any(Path(entry).parts[0] == name for entry in ignored)
