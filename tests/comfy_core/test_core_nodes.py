"""Every node of the core that takes a model and gives one, in front of block swap and behind it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodes as core
import pytest
import quantised
import simulated
import tiny
import torch

from blockswap.nodes.clone.holding import holding_of

# Compiled models have tests of their own; these ask for a file, another device or a service.
ELSEWHERE = ("TorchCompileModel", "MultiGPU_WorkUnits", "BlockSwap", "wanBlockSwap")
# A newer core, by hand, tries all of them; an older one, in CI, those of a few files.
ALL, SOME = quantised.PER_LAYER, ("context_windows", "model_merging")
MERGES = {
    f"ModelMerge{kind}"
    for kind in (("Add", "Blocks", "Simple", "Subtract", "WAN2_1") if ALL else ("Simple",))
}
VALUES = {"dtype": "bf16"}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GIVEN = ("MODEL", "CONDITIONING")


def found() -> dict[str, Any]:
    """Nodes that need nothing but models, prompts and what stands in their widgets."""
    if ALL:
        asyncio.run(core.init_builtin_extra_nodes())
    folder = Path(core.__file__).with_name("comfy_extras")
    for file in () if ALL else SOME:
        asyncio.run(core.load_custom_node(str(folder / f"nodes_{file}.py"), set(), "comfy_extras"))
    kept = {}
    for name, node in sorted(core.NODE_CLASS_MAPPINGS.items()):
        try:
            asked = node.INPUT_TYPES().get("required", {})
        except Exception:  # a node that lists files of this machine
            continue
        kinds = [kind for kind, *_ in asked.values()]
        known = [isinstance(k, list | tuple) or k in (*WIDGETS, *GIVEN) for k in kinds]
        if "MODEL" in kinds and "MODEL" in node.RETURN_TYPES and all(known):
            kept[name] = node
    of_others = {n for n in kept if n.startswith("ModelMerge")} - MERGES
    return {n: k for n, k in kept.items() if not n.startswith(ELSEWHERE) and n not in of_others}


NODES = found()


def applied(name: str, model: Any, second: Any) -> Any:
    """What the node gives for a model, with its widgets as they come out of the menu."""
    node, given, models = NODES[name], {}, [model, second]
    for key, (kind, *more) in node.INPUT_TYPES()["required"].items():
        options = more[0] if more else {}
        if kind == "MODEL":
            given[key] = models.pop(0)
        elif kind == "CONDITIONING":
            given[key] = [[torch.zeros(1, 5, 4096), {}]]
        else:
            choices = kind if isinstance(kind, list | tuple) else options.get("options")
            first = choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(kind, 0)
            given[key] = VALUES.get(key, options.get("default", first))
    place = list(node.RETURN_TYPES).index("MODEL")
    call = node.execute if hasattr(node, "GET_SCHEMA") else getattr(node(), node.FUNCTION)
    made = call(**given)
    return (made.result if hasattr(made, "result") else made)[place]


@pytest.fixture(autouse=True)
def _on_sim(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    yield from simulated.on_simulated(request, monkeypatch)


def outcome(make: Any) -> Any:
    """Latents, or what was raised: a node for images may not take a model of videos."""
    try:
        return tiny.sample(make(), steps=2)
    except Exception as raised:  # compared with what is raised without us
        return type(raised).__name__


@pytest.mark.parametrize("name", NODES)
def test_latents_are_those_without_us(name: str) -> None:
    plain, second = tiny.model("t2v"), tiny.model("t2v", seed=8)
    asked = {"blocks": "0,2-4"}
    expected = outcome(lambda: applied(name, plain, second))
    for make in (
        lambda: applied(name, tiny.swapped(plain, **asked), second),
        lambda: tiny.swapped(applied(name, plain, second), **asked),
        lambda: applied(name, plain, tiny.swapped(second, **asked)),
    ):
        got = outcome(make)
        assert isinstance(got, str) == isinstance(expected, str), (got, expected)
        assert got == expected if isinstance(got, str) else torch.equal(got, expected)
    assert holding_of(plain.model) is None or not isinstance(expected, str)
