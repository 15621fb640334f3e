"""Memory of the wrapper pack's models on our engine: what is kept where, and what runs out.

With the stand-in of that pack, on the simulated accelerator.
"""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wrapper_packs
from stand_in import BLOCKS, NAME, model, own_moves, part, sample, streamed, swapped

from blockswap.errors import PlanError
from blockswap.nodes.runs import run_again
from blockswap.nodes.wrapper.pack import takeover_on


@pytest.fixture(autouse=True)
def pack() -> None:
    wrapper_packs.load(NAME, wrapper_packs.STAND_IN)


@pytest.fixture
def sim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from wrapper_packs.simulated(NAME, request, monkeypatch)


@pytest.mark.parametrize("kind", ["plain", "gguf"])
def test_nothing_is_copied_back_and_a_budget_holds(
    kind: str, sim: torch.device, sim_module: Any
) -> None:
    plain = model(kind)
    expected = sample(plain)
    ours = swapped(plain, vram_budget="24KiB")
    before = sim_module.counters().d2h_bytes
    assert torch.equal(sample(ours, force_offload=False), expected)
    assert sim_module.counters().d2h_bytes - before == expected.nbytes  # the latents
    takeover = takeover_on(ours)
    assert takeover.swap.plan.device_bytes <= 24 << 10
    takeover.close()
    assert streamed(ours)


# Not GGUF: without us the stand-in unpacks on the CPU. The real pack's is in test_real_wrapper.
@pytest.mark.parametrize("kind", ["plain", "merged", "scaled", "lora", "vace"])
def test_a_budget_is_kept_by_the_device_itself(
    kind: str, sim: torch.device, sim_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its peak, less what the same forward takes beside the weights where all of them are there."""
    for module in ("wanvideo.modules.model", "nodes_sampler"):
        monkeypatch.setattr(part(module), "DIM", 256)
    plain = model(kind)
    wrapper_packs.hold_a_budget(plain, swapped, sample, sim_module)


@pytest.mark.parametrize("kind", ["plain", "scaled", "lora"])
def test_host_memory_is_not_doubled(kind: str, sim: torch.device) -> None:
    """The pack keeps the weights for its next run: what is streamed rests there, and only there."""
    plain = model(kind)
    ours, kept = swapped(plain, blocks="1,4"), plain.model.pipeline["sd"]
    before = {key: value.clone() for key, value in kept.items()}
    sample(ours, force_offload=False)
    found = 0
    for name, weight in plain.model.diffusion_model.named_parameters():
        if name.startswith(("blocks.1.", "blocks.4.")) and "lora_diff" not in name:
            assert weight.data_ptr() == kept[name].data_ptr()
            found += 1
    assert found == 18
    takeover_on(ours).close()
    assert all(torch.equal(kept[key].float(), value.float()) for key, value in before.items())


def test_a_budget_that_is_too_small_leaves_the_model_usable(sim: torch.device) -> None:
    plain = model()
    expected = sample(plain)
    ours = swapped(plain, vram_budget="1KiB")
    with pytest.raises(PlanError, match=r"1\.0 KiB"):
        sample(ours)
    assert torch.equal(sample(plain), expected)
    assert own_moves(plain) == []


class Failing:
    """A block whose forward runs out of memory a few times, at its end."""

    def __init__(self, patcher: Any, times: int, block: int = 4) -> None:
        self.left = times
        self.calls = 0
        patcher.model.diffusion_model.blocks[block].register_forward_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            torch.rand(3)  # the random state has moved on
            raise torch.OutOfMemoryError("Tried to allocate 1.00 MiB.")


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "gguf", "scaled lora"])
def test_a_forward_that_runs_out_of_memory(kind: str, times: int, sim: torch.device) -> None:
    plain = model(kind)
    expected = sample(plain)
    ours = swapped(plain, vram_budget="1GiB")
    before = torch.get_rng_state()
    failing = Failing(plain, times)
    assert torch.equal(sample(ours), expected)
    assert failing.left == 0
    assert torch.equal(torch.get_rng_state(), before)
    told = str(takeover_on(ours).swap.report())
    assert "a forward ran out of memory: what it held was dropped" in told or times > 1
    # Half of what stays is let go first; slots take their room in so small a model.
    assert {1: 0, 2: BLOCKS // 2, 3: BLOCKS}[times] <= len(streamed(ours)) <= BLOCKS * (times > 1)
    assert torch.equal(sample(ours), expected)
    assert len(streamed(ours)) == 0  # the next run begins with what it was asked
    assert torch.equal(sample(plain), expected)
    assert own_moves(plain) == []


@pytest.mark.parametrize(
    ("times", "asked", "cache", "said"),
    [
        (2, {"blocks": "0,2"}, False, "no block can leave the device any more"),
        (4, {"vram_budget": "1GiB"}, False, "no block can leave the device any more"),
        (1, {"vram_budget": "1GiB"}, True, "with a feature cache .* is not run again"),
    ],
)
def test_a_forward_that_cannot_be_run_again_says_why(
    times: int, asked: dict[str, Any], cache: bool, said: str, sim: torch.device
) -> None:
    plain = model()
    expected = sample(plain)
    ours = swapped(plain, **asked)
    Failing(plain, times)
    plain.model.diffusion_model.enable_teacache = cache
    with pytest.raises(torch.OutOfMemoryError) as raised:
        sample(ours)
    assert re.search(said, " ".join(raised.value.__notes__))
    assert takeover_on(ours).swap.closed
    plain.model.diffusion_model.enable_teacache = False
    assert torch.equal(sample(ours), expected)
    assert torch.equal(sample(plain), expected)


def test_a_python_whose_errors_take_no_notes_says_why_as_the_cause(
    sim: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_again, "sys", SimpleNamespace(version_info=(3, 10)))
    plain = model()
    ours = swapped(plain, blocks="0,2")
    Failing(plain, 2)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        sample(ours)
    assert not hasattr(raised.value, "__notes__")
    assert "no block can leave the device any more" in str(raised.value.__cause__)
