"""The real wrapper pack on our engine: run by hand, with BLOCKSWAP_WRAPPER=<folder of the pack>.

Tiny models of 30 blocks go through its own loader and sampler nodes, on the CPU and with all of
its modules pointed at the simulated accelerator.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as management
import folder_paths
import pytest
import real_wrapper
import torch
import wrapper_packs
from safetensors.torch import save_file

from blockswap import BlockSwapArgs
from blockswap.nodes import plan_route
from blockswap.nodes.seams import host
from blockswap.nodes.swap_node import BlockSwapNode
from blockswap.nodes.wrapper import names as wrapper_names
from blockswap.nodes.wrapper.pack import takeover_on

pytestmark = pytest.mark.skipif(
    real_wrapper.HOME is None,
    reason="the real pack is tried by hand: set BLOCKSWAP_WRAPPER to its folder",
)

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("wrapper")
    plain, vace = real_wrapper.weights(), real_wrapper.weights(vace=True)
    kinds = {
        "plain": plain,
        "vace": vace,
        "scaled": real_wrapper.fp8_scaled(plain),
        "lora": real_wrapper.lora(plain),
    }
    paths = {kind: folder / f"{kind}.safetensors" for kind in kinds}
    for kind, weights in kinds.items():
        save_file(weights, paths[kind])
    paths["gguf"] = real_wrapper.write_gguf(folder / "tiny.gguf", plain)
    return paths


@pytest.fixture(params=["cpu", "sim"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    real_wrapper.part("utils")
    if request.param == "cpu":
        yield torch.device("cpu")
    else:
        yield from wrapper_packs.simulated(real_wrapper.NAME, request, monkeypatch)


@pytest.fixture
def sim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    real_wrapper.part("utils")
    yield from wrapper_packs.simulated(real_wrapper.NAME, request, monkeypatch)


def model(kind: str, files: Files, patch: pytest.MonkeyPatch) -> Any:
    if kind in ("lora", "merged", "scaled lora"):
        lora = real_wrapper.asked_lora(files["lora"], merged=kind == "merged")
        base = "scaled" if "scaled" in kind else "plain"
        return real_wrapper.model(files[base], patch, lora=lora)
    return real_wrapper.model(files[kind], patch)


def sample(patcher: Any, **options: Any) -> torch.Tensor:
    latents = real_wrapper.sample(patcher, **options)
    assert torch.isfinite(latents).all()
    return latents


def swapped(patcher: Any, **asked: Any) -> Any:
    (clone,) = BlockSwapNode.execute(patcher, BlockSwapArgs(**asked).to_mapping()).result
    assert "streamed here" in clone.model_options["transformer_options"]["blockswap_said"]
    return clone


def streamed(patcher: Any) -> set[str]:
    measured = takeover_on(patcher).swap.measured()
    return {visit.unit for visit in measured.visits if visit.tier != "resident"}


@pytest.fixture
def own_moves(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every `.to()` of a block inside a forward of the transformer: the pack's own swap."""
    moved: list[Any] = []
    cls = real_wrapper.part("wanvideo.modules.model").WanAttentionBlock
    forward = real_wrapper.part("wanvideo.modules.model").WanModel.forward
    inside: list[bool] = []

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inside:
            moved.append(args)
        return torch.nn.Module.to(self, *args, **kwargs)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        inside.append(True)
        try:
            return forward(self, *args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(cls, "to", to, raising=False)
    counted.__wrapped__ = forward  # type: ignore[attr-defined]
    monkeypatch.setattr(real_wrapper.part("wanvideo.modules.model").WanModel, "forward", counted)
    return moved


def test_its_names_are_those_that_we_know(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrapper_names.missing(model("plain", files, monkeypatch)) is None


@pytest.mark.parametrize("kind", ["plain", "merged", "scaled", "gguf", "lora", "scaled lora"])
def test_a_list_on_every_kind_of_model(
    kind: str,
    device: torch.device,
    files: Files,
    own_moves: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = model(kind, files, monkeypatch)
    expected = sample(plain)
    ours = swapped(plain, blocks="0,2,3-5,29")
    assert torch.equal(sample(ours), expected)
    if device.type != "cpu":
        assert streamed(ours) == {f"blocks.{n}" for n in (0, 2, 3, 4, 5, 29)}
    assert torch.equal(sample(plain), expected)
    assert torch.equal(sample(ours, force_offload=False), expected)
    assert torch.equal(sample(plain), expected)
    assert own_moves == []


@pytest.mark.parametrize("kind", ["plain", "gguf", "scaled lora"])
@pytest.mark.parametrize("sampler", ["diffusion forcing", "windows"])
def test_its_other_samplers(
    sampler: str,
    kind: str,
    sim: torch.device,
    files: Files,
    own_moves: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(patcher: Any) -> torch.Tensor:
        if sampler == "windows":
            return real_wrapper.sample_windows(patcher, monkeypatch)
        return real_wrapper.sample_diffusion_forcing(patcher)

    plain = model(kind, files, monkeypatch)
    expected = made(plain)
    assert torch.isfinite(expected).all()
    ours = swapped(plain, blocks="0,2,3-5,29")
    assert torch.equal(made(ours), expected)
    assert streamed(ours) == {f"blocks.{n}" for n in (0, 2, 3, 4, 5, 29)}
    assert takeover_on(ours).swap.closed
    assert torch.equal(made(plain), expected)
    assert own_moves == []


def test_counts_and_vace_blocks(
    sim: torch.device, files: Files, own_moves: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model("vace", files, monkeypatch)
    context = real_wrapper.vace_embeds(sim)
    expected = sample(plain, embeds=context)
    assert not torch.equal(expected, sample(plain))
    ours = swapped(plain, blocks_to_swap=7, vace_blocks_to_swap=4, offload_txt_emb=True)
    assert torch.equal(sample(ours, embeds=context), expected)
    found = streamed(ours)
    assert len([name for name in found if name.startswith("blocks.")]) == 7
    assert len([name for name in found if name.startswith("vace_blocks.")]) == 4
    assert "text_embedding" in found
    assert torch.equal(sample(plain, embeds=context), expected)
    assert own_moves == []


@pytest.mark.parametrize("kind", ["plain", "gguf", "lora"])
def test_a_budget_and_nothing_copied_back(
    kind: str,
    sim: torch.device,
    sim_module: Any,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = model(kind, files, monkeypatch)
    expected = sample(plain, steps=1)
    before = sim_module.counters().d2h_bytes
    assert torch.equal(sample(plain, steps=1, force_offload=False), expected)
    usual = sim_module.counters().d2h_bytes - before
    sample(plain, steps=1)  # or it would find the weights on the device
    ours = swapped(plain, vram_budget="8MiB")
    before = sim_module.counters().d2h_bytes
    assert torch.equal(sample(ours, steps=1, force_offload=False), expected)
    block = takeover_on(ours).swap.plan.slot_bytes
    assert sim_module.counters().d2h_bytes - before - usual < block // 8  # what it reads anyway
    assert takeover_on(ours).swap.plan.device_bytes <= 8 << 20
    assert streamed(ours)
    takeover_on(ours).close()


@pytest.mark.parametrize(
    "kind", ["plain", "merged", "scaled", "gguf", "lora", "scaled lora", "vace"]
)
def test_a_budget_is_kept_by_the_device_itself(
    kind: str, sim: torch.device, sim_module: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its peak, less what the same forward takes beside the weights where all of them are there."""
    plain = model(kind, files, monkeypatch)
    wrapper_packs.hold_a_budget(plain, swapped, partial(sample, steps=1), sim_module)


def test_an_interrupt_hands_everything_back(
    sim: torch.device, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model("plain", files, monkeypatch)
    expected = sample(plain, steps=1)
    ours = swapped(plain, blocks="3-20")
    with monkeypatch.context() as inside:
        calls = iter(range(10**6))

        def interrupt() -> None:
            if next(calls) == 10:
                raise management.InterruptProcessingException

        inside.setattr(management, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(management.InterruptProcessingException):
            sample(ours, steps=1)
    assert takeover_on(ours).swap.closed
    assert torch.equal(sample(plain, steps=1), expected)
    assert torch.equal(sample(ours, steps=1), expected)


ASKED: tuple[dict[str, Any], ...] = (
    {"blocks": "0,2-9"},
    {"blocks_to_swap": 12},
    {"vram_budget": "6MiB"},
)


@pytest.mark.parametrize("kind", ["plain", "scaled", "gguf", "vace"])
def test_the_plan_before_a_run_is_what_is_done(
    kind: str, sim: torch.device, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units to the name; bytes but for single numbers, which the pack keeps in forms of its own."""
    told: list[str] = []
    loader = real_wrapper.part("nodes_model_loading").WanVideoModelLoader
    monkeypatch.setattr(host, "show_text", lambda _, text, *__: told.append(text))
    monkeypatch.setattr(BlockSwapNode, "hidden", SimpleNamespace(unique_id="7"))
    monkeypatch.setattr(host, "registered", lambda _: loader)
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(files[kind]))
    plain = model(kind, files, monkeypatch)
    asked = {"loader": "WanVideoModelLoader", "file": "any", "base_precision": "bf16"}
    for args in ASKED:
        before = plan_route.planned({**asked, "args_node": "Other", "args": args})
        ours = swapped(plain, **args)
        told.clear()
        sample(ours, steps=1)
        plan, now = takeover_on(ours).swap.plan, told[0]
        foretold = before.partition("without LoRAs: ")[2]
        units = re.compile(r"\d+ of \d+ units stay, \d+ are streamed")
        assert units.findall(foretold) == units.findall(now) != []
        assert plan.map_words() in foretold
        need, streamed_bytes = re.search(r"([\d.]+) MiB of weights", foretold), plan.streamed_bytes
        assert abs(float(need[1]) * 2**20 / plan.device_bytes - 1) < 0.03
        if (moved := re.search(r"streamed \(([\d.]+) MiB", foretold)) is not None:
            assert abs(float(moved[1]) * 2**20 / streamed_bytes - 1) < 0.03
