"""The plan that the page asks for before a run is the one that the node makes in it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_packs
import pytest
import simulated
import tiny
import torch
from safetensors.torch import save_file

from blockswap import BlockSwapArgs
from blockswap.errors import HostError
from blockswap.nodes.clone.overrides import plan_text
from blockswap.nodes.clone.patcher import swap_on_clone
from blockswap.nodes.loading import load_streamed, plan_for_file
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import host

ARGS: tuple[dict[str, Any], ...] = ({}, {"blocks": "0,2-4"}, {"vram_budget": "4MiB"})


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.computing_on(sim_device, monkeypatch)


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize("kind", ["t2v", "vace", "fp32", "fp8_scaled", "gguf"])
def test_as_the_nodes_have_it(kind: str, tmp_path: Path) -> None:
    weights = tiny.state_dict(
        "vace" if kind == "vace" else "t2v", torch.float32 if kind == "fp32" else torch.bfloat16
    )
    path = str(tmp_path / "wan.safetensors")
    if kind == "gguf":
        path = gguf_packs.written(tmp_path / "wan.gguf", weights)
        plain = gguf_packs.loaded("stand-in", path)
    else:
        weights = tiny.fp8_scaled(weights) if kind == "fp8_scaled" else weights
        plain = tiny.loaded(weights)
        save_file(weights, path)
    for args in ARGS:
        wish = Wish(BlockSwapArgs(**args))
        told = plan_for_file(path, wish, "default", streamed=True)
        assert told == plan_text(load_streamed(path, wish))
        assert "of weights and slots on sim" in told
        behind = plan_for_file(path, wish, "default", streamed=False)
        assert behind == plan_text(swap_on_clone(plain, wish))


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
def test_none_while_a_prompt_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SimpleNamespace(mutex=threading.RLock(), currently_running={})
    monkeypatch.setattr(host, "page_server", lambda: SimpleNamespace(prompt_queue=queue))
    taken = []
    with host.between_prompts():
        thread = threading.Thread(target=lambda: taken.append(queue.mutex.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]  # no prompt could have been taken from the queue meanwhile
    queue.currently_running[0] = "a prompt"
    with pytest.raises(HostError, match="a prompt is running"), host.between_prompts():
        pass
    del queue.mutex
    with pytest.raises(HostError, match="does not say whether"), host.between_prompts():
        pass
