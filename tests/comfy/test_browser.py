"""The page, in a headless Chromium: what a person finds, sees, gets wrong and runs.

`BLOCKSWAP_WRITE_SCREENSHOTS=1` puts the pictures into docs/; read the diff.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_host import chromium, graphs
from comfy_host.chromium import Page
from comfy_host.client import Client
from comfy_host.example_files import T2V
from comfy_host.graphs import OURS, ObjectInfo
from comfy_host.server import REPOSITORY

WORKFLOWS = sorted(graphs.WORKFLOWS.glob("*.json"))
SIZE = (1400, 900)
RUN, CONFIRM = {"key": "Enter", "code": 13, "ctrl": True}, {"key": "Enter", "code": 13}

# The page's own objects; a node's slots and widgets are drawn, so they are found by arithmetic.
READY = f"!!(window.app?.graph && window.LiteGraph?.registered_node_types['{OURS}'])"
PLACE = """(() => {{
  const node = app.graph._nodes.find(node => node.type == '{node}')
  const point = {point}
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(point)
  const frame = app.canvas.canvas.getBoundingClientRect()
  return [x + frame.left, y + frame.top]
}})()"""
SLOT = "node.getConnectionPos({is_input}, {slot})"
WIDGET = "[node.pos[0] + 60, node.pos[1] + node.widgets.find(w => w.name == '{name}').last_y + 10]"
# Neither the splash of the start nor a dialog lies over the graph.
UNCOVERED = "document.elementFromPoint(500, 300)?.id == 'graph-canvas'"
TOOLTIP = "(document.querySelector('.node-tooltip')?.innerText ?? '')"
BUTTON = """(() => {{
  const found = [...document.querySelectorAll('button')].find(b => b.innerText.includes('{text}'))
  const box = found?.getBoundingClientRect()
  return box && [box.x + box.width / 2, box.y + box.height / 2]
}})()"""


@pytest.fixture(scope="module")
def program() -> str:
    """Chromium, which `.ci/run` installs; where there is none the reason is told."""
    found = chromium.find()
    if found is None:
        pytest.skip(f"needs one of {', '.join(chromium.NAMES)} on the PATH")
    return found


@pytest.fixture(scope="module")
def window(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium.browsing(program, tmp_path_factory.mktemp("chromium"), SIZE) as page:
        yield page


@pytest.fixture
def page(window: Page, comfy: Client) -> Page:
    """The page, just opened, with an empty graph."""
    opened(window, comfy)
    window.evaluate("app.graph.clear()")
    return window


def opened(window: Page, comfy: Client) -> None:
    comfy.free()
    window.open(comfy.server.url)
    window.wait_for(READY)
    window.wait_for(UNCOVERED)


@pytest.fixture
def picture(tmp_path: Path, page: Page):
    """Takes a screenshot under a name."""
    folder = REPOSITORY / "docs" if os.environ.get("BLOCKSWAP_WRITE_SCREENSHOTS") else tmp_path

    def take(name: str, **clip: float) -> None:
        path = folder / f"comfyui_{name}.png"
        page.screenshot(path, clip=clip or None)
        with Image.open(path) as drawn:
            small = drawn.convert("RGB").quantize(128)
        small.save(path, optimize=True)
        assert len(small.getcolors() or ()) > 30  # not an empty window

    return take


def place_of(page: Page, node: str, point: str) -> tuple[float, float]:
    x, y = page.evaluate(PLACE.format(node=node, point=point))
    return x, y


def tooltip_at(page: Page, x: float, y: float) -> str:
    """What the page says after the mouse has rested there."""
    page.move(700, 800)
    page.wait_for(f"{TOOLTIP} == ''")
    page.move(x - 2, y)
    page.move(x, y)
    return str(page.wait_for(TOOLTIP))


def add_by_search(page: Page, text: str, x: float, y: float) -> None:
    """As a person does: double click, type, Enter, put it down."""
    before = page.evaluate("app.graph._nodes.length")
    page.click(x, y, times=2)
    page.wait_for("document.activeElement?.tagName == 'INPUT'")
    page.type(text)
    first = "document.querySelector('[role=option]')?.innerText.split('\\n')[0].trim()"
    page.wait_for(f"{first} == {json.dumps(text)}")
    page.press(**CONFIRM)
    page.wait_for(f"app.graph._nodes.length == {before + 1}")
    page.wait_for(UNCOVERED)
    page.click(x, y)
    page.wait_for("!app.graph._nodes.some(node => node.flags.ghost)")


def test_the_node_is_found_by_its_name_and_tells_what_its_slots_are(
    page: Page, info: ObjectInfo, picture
):
    add_by_search(page, "WanVideo Block Swap", 500, 300)
    title, kind, widgets = page.evaluate(
        "(([node]) => [node.title, node.type, node.widgets.map(({name, type}) => ({name, type}))])"
        "(app.graph._nodes)"
    )
    assert (title, kind) == ("WanVideo Block Swap", OURS)
    assert [(w["name"], w["type"]) for w in widgets] == [("plan", "button")]
    tips = {name: options["tooltip"] for name, _, options in graphs.inputs_of(info[OURS])}
    for slot, name in enumerate(("model", "block_swap_args")):
        x, y = place_of(page, OURS, SLOT.format(is_input="true", slot=slot))
        assert tooltip_at(page, x + 10, y) == tips[name]
    x, y = place_of(page, OURS, SLOT.format(is_input="false", slot=0))
    assert tooltip_at(page, x - 4, y) == info[OURS]["output_tooltips"][0]


def test_the_args_node_shows_every_setting_and_what_it_means(page: Page, info: ObjectInfo, picture):
    args = f"{OURS}Args"
    add_by_search(page, "WanVideo Block Swap Args", 500, 300)
    shown = page.evaluate("app.graph._nodes[0].widgets.map(w => [w.name, w.value])")
    assert dict(shown) == {**graphs.ARGS, "chunk_tokens": -1}
    page.evaluate("app.graph._nodes[0].setSize([360, 300])")
    tips = {name: options["tooltip"] for name, _, options in graphs.inputs_of(info[args])}
    for name in graphs.ARGS:
        x, y = place_of(page, args, WIDGET.format(name=name))
        assert tooltip_at(page, x, y) == tips[name], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_workflow_opens_and_asks_what_we_think_it_asks(
    path: Path, page: Page, info: ObjectInfo
):
    workflow = graphs.load_workflow(path)
    show(page, workflow)
    assert page.evaluate("app.graph._nodes.filter(node => node.has_errors).length") == 0
    assert "missing" not in page.text().lower()
    sent = page.evaluate("app.graphToPrompt().then(sent => sent.output)")
    kept = {key: _plain(node) for key, node in sent.items() if node["class_type"] in info}
    assert kept == graphs.to_prompt(workflow, info)


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """Without what the page adds for itself: titles, previews, the upload button's value."""
    inputs = {
        name: value
        for name, value in node["inputs"].items()
        if name not in ("preview_text", "preview_mode", "upload", "previewMode")
    }
    return {"class_type": node["class_type"], "inputs": inputs}


def show(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate(f"app.loadGraphData({json.dumps(workflow)})")
    page.wait_for(f"app.graph._nodes.length == {len(workflow['nodes'])}")


def runnable(name: str) -> dict[str, Any]:
    """An example workflow with the tests' stand-ins and sizes, in the page's own format."""
    workflow = graphs.load_workflow(graphs.WORKFLOWS / f"{name}.json")
    for node in workflow["nodes"]:
        if node["type"] in graphs.STAND_INS:
            node["title"] = "Load CLIP"
            node.update(type=graphs.STAND_INS[node["type"]], inputs=[], widgets_values=[])
            node["properties"] = {}
        elif node["type"] == "EmptyHunyuanLatentVideo":
            node["widgets_values"] = [64, 64, 9, 1]
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = 4
        elif node["type"] == f"{OURS}Args":  # a budget that is as small as the model
            node["widgets_values"] = ["4MiB" if v == "4GiB" else v for v in node["widgets_values"]]
        elif node.get("title", "").endswith("(Negative Prompt)"):
            node["widgets_values"] = ["blurred, static, low quality"]
    return workflow


def run(page: Page, comfy: Client) -> dict[str, Any]:
    """Ctrl+Enter, and how it ended."""
    before = set(comfy.get("/history"))
    page.press(**RUN)
    page.wait_for(
        f"fetch('/history').then(a => a.json()).then(h => Object.keys(h).length > {len(before)})"
    )
    (done,) = set(comfy.get("/history")) - before
    return comfy.get(f"/history/{done}")[done]


def test_a_run_shows_what_is_streamed_and_what_it_cost(page: Page, comfy: Client, picture):
    show(page, runnable("wan2.1_low_ram"))
    assert run(page, comfy)["status"]["status_str"] == "success"
    line = "node.widgets.find(w => w.name.includes('text-preview'))?.value ?? ''"
    loader = f"app.graph._nodes.find(node => node.type == '{OURS}Loader')"
    said = page.wait_for(f"(() => {{ const node = {loader}; return {line} }})()")
    assert "of 6 blocks streamed" in said
    assert not said.startswith("0 of 6")
    assert "of 6 blocks streamed" in page.wait_for(
        "app.graph._nodes.find(n => n.type == 'PreviewAny').widgets[0].value"
    )
    page.wait_for("app.graph._nodes.find(n => n.type == 'PreviewImage').imgs?.length == 1")
    page.evaluate("app.canvas.setDirty(true, true)")
    picture("run")


@pytest.mark.parametrize("name", ["wan2.1_low_ram", "wan2.1_text_to_video"])
def test_the_plan_is_told_before_anything_is_queued(name: str, page: Page, comfy: Client):
    show(page, runnable(name))
    before = set(comfy.get("/history"))
    node = f"{OURS}Loader" if name == "wan2.1_low_ram" else OURS
    page.click(*place_of(page, node, WIDGET.format(name="plan")))
    find = f"app.graph._nodes.find(node => node.type == '{node}')"
    line = f"{find}.widgets.find(w => w.name.includes('text-preview'))?.value ?? ''"
    assert "units stay" in page.wait_for(line)
    assert set(comfy.get("/history")) == before
    saved = page.evaluate(f"app.graph.serialize().nodes.find(n => n.type == '{node}')")
    assert "plan" not in json.dumps(saved.get("widgets_values"))


def test_the_plan_finds_the_file_of_the_wrapper_packs_loader(page: Page):
    """A node like that pack's, whose file stands in a widget named as the swap node's input."""
    answer = page.evaluate(f"""(async () => {{
      class Loader extends LiteGraph.LGraphNode {{
        constructor() {{
          super("loader")
          this.addWidget("combo", "model", "{T2V}", () => {{}}, {{ values: ["{T2V}"] }})
          this.addOutput("model", "WANVIDEOMODEL")
          this.addInput("extra_model", "VACEPATH")
        }}
      }}
      LiteGraph.registerNodeType("WanVideoModelLoader", Loader)
      const loader = LiteGraph.createNode("WanVideoModelLoader")
      const swap = LiteGraph.createNode("{OURS}")
      app.graph.add(loader)
      app.graph.add(swap)
      loader.connect(0, swap, 0)
      return swap.widgets.find(widget => widget.name == "plan").callback()
    }})()""")
    assert answer == (
        "plan: the pack of the node WanVideoModelLoader is not installed: install WanVideoWrapper"
    )


def add_args(page: Page, blocks: str) -> None:
    """An args node with a block list, connected to the swap node."""
    page.evaluate(f"""(() => {{
      const args = LiteGraph.createNode('{OURS}Args')
      app.graph.add(args)
      args.pos = [800, 180]
      args.widgets.find(widget => widget.name == 'blocks').value = {json.dumps(blocks)}
      args.connect(0, app.graph._nodes.find(node => node.type == '{OURS}'), 1)
    }})()""")


def details(page: Page) -> None:
    """Opens the panel that tells of errors."""
    x, y = page.wait_for(BUTTON.format(text="View details"))
    page.click(x, y)


def test_a_mistake_of_grammar_shows_on_the_args_node_before_anything_runs(
    page: Page, comfy: Client, picture
):
    show(page, runnable("wan2.1_text_to_video"))
    add_args(page, "3-1")
    before = set(comfy.get("/history"))
    page.press(**RUN)
    details(page)
    label = "Info for WanVideo Block Swap Args - blocks"
    more = f"document.querySelector('button[aria-label=\"{label}\"]')"
    page.wait_for(f"!!{more}")
    page.evaluate(f"{more}.click()")
    page.wait_for("document.body.innerText.includes(\"Invalid range: '3-1'\")")
    assert set(comfy.get("/history")) == before


def test_a_block_that_the_model_lacks_shows_on_the_swap_node(page: Page, comfy: Client, picture):
    show(page, runnable("wan2.1_text_to_video"))
    add_args(page, "38-41")
    assert run(page, comfy)["status"]["status_str"] == "error"
    details(page)
    said = "Invalid range: '38-41': the model has blocks 0-5"
    page.wait_for(f"document.body.innerText.includes({json.dumps(said)})")
    page.evaluate("""(() => {
      for (const part of document.querySelectorAll('*'))
        if (part.scrollHeight > part.clientHeight && part.innerText?.includes('Exception Message'))
          part.scrollTop = 240
    })()""")
    picture("error")


def test_the_help_page_opens_from_the_node(page: Page):
    add_by_search(page, "WanVideo Block Swap", 500, 300)
    page.evaluate("app.canvas.selectNode(app.graph._nodes[0])")
    button = "document.querySelector('[data-testid=\"info-button\"]')"
    page.wait_for(f"!!{button}")
    page.evaluate(f"{button}.click()")
    page.wait_for("document.body.innerText.includes('to the last bit')")


@pytest.mark.parametrize(
    ("language", "title"), [("zh", "WanVideo 块交换"), ("ja", "WanVideo ブロックスワップ")]
)
def test_the_node_speaks_other_languages(language, title, window: Page, comfy: Client):
    comfy.post("/settings/Comfy.Locale", language)
    try:
        opened(window, comfy)
        node = f"LiteGraph.createNode('{OURS}').title"
        assert window.wait_for(f"{node} == {json.dumps(title)}")
    finally:
        comfy.post("/settings/Comfy.Locale", "en")
