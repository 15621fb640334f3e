"""The wrapper pack's models on our engine, with a stand-in that has the real one's order of calls.

Every way in which that pack places weights, on the CPU and on the simulated accelerator: streamed
is what was asked, its own swap has moved nothing, latents are those without the node.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
import wrapper_packs
from safetensors.torch import save_file
from stand_in import (
    BLOCKS,
    NAME,
    model,
    names,
    own_moves,
    part,
    sample,
    streamed,
    swapped,
    with_lora,
)

from blockswap.errors import ArgsError, ModelError, SelectionError
from blockswap.nodes import plan_route, swap_node
from blockswap.nodes.report_node import BlockSwapReportNode
from blockswap.nodes.seams import host
from blockswap.nodes.wrapper import doors as wrapper_doors
from blockswap.nodes.wrapper import names as wrapper_names
from blockswap.nodes.wrapper.pack import takeover_on
from blockswap.report.words import name_runs
from blockswap.units import format_bytes

KINDS = ("plain", "merged", "scaled", "gguf", "lora", "scaled lora", "vace", "vace gguf")


@pytest.fixture(autouse=True)
def pack() -> None:
    wrapper_packs.load(NAME, wrapper_packs.STAND_IN)


@pytest.fixture(params=["cpu", "sim"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    if request.param == "cpu":
        yield torch.device("cpu")
    else:
        yield from wrapper_packs.simulated(NAME, request, monkeypatch)


@pytest.fixture
def sim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from wrapper_packs.simulated(NAME, request, monkeypatch)


def test_the_stand_in_swaps_by_itself(device: torch.device) -> None:
    """Without the node its loop moves blocks: a count of none below says something."""
    patcher = model()
    patcher.model_options["transformer_options"]["block_swap_args"] = {
        "blocks_to_swap": 3, "offload_txt_emb": False, "offload_img_emb": False,
    }  # fmt: skip
    sample(patcher, steps=1)
    assert len(own_moves(patcher)) == 4  # two blocks, there and back: one fewer than its count


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_on_every_kind_of_model(kind: str, device: torch.device) -> None:
    plain = model(kind)
    expected = sample(plain)
    ours = swapped(plain, blocks="0,2-3,5")
    for _ in range(2):
        assert torch.equal(sample(ours), expected)
        if device.type != "cpu":
            assert streamed(ours) == names(0, 2, 3, 5)
        assert torch.equal(sample(plain), expected)
    assert own_moves(plain) == []


@pytest.mark.parametrize("count", [0, 1, 3, BLOCKS, 9999])
def test_a_count_streams_exactly_as_many(count: int, sim: torch.device) -> None:
    plain = model()
    expected = sample(plain)
    ours = swapped(plain, blocks_to_swap=count)
    assert torch.equal(sample(ours), expected)
    assert len(streamed(ours)) == min(count, BLOCKS)
    assert own_moves(plain) == []


def test_vace_blocks_and_the_text_embedder(sim: torch.device) -> None:
    plain = model("vace")
    expected = sample(plain)
    ours = swapped(plain, blocks="1", vace_blocks_to_swap=2, offload_txt_emb=True)
    assert torch.equal(sample(ours), expected)
    assert len([name for name in streamed(ours) if name.startswith("vace_blocks.")]) == 2
    assert {"blocks.1", "text_embedding"} < set(streamed(ours))
    assert own_moves(plain) == []
    assert torch.equal(sample(plain), expected)
    assert list(dict(plain.model.diffusion_model.vace_blocks[0].named_children())) == [
        "norm", "q", "ffn", "before_proj", "after_proj",
    ]  # fmt: skip


def test_two_experts_in_turn(sim: torch.device) -> None:
    high, low = model(), model("scaled")
    expected = [sample(high), sample(low)]
    ours = [swapped(high, blocks="0-2"), swapped(low, blocks_to_swap=4)]
    for _ in range(2):
        assert [torch.equal(sample(m), e) for m, e in zip(ours, expected, strict=True)] == [
            True
        ] * 2


def test_a_range_beyond_the_model_is_refused_by_the_node() -> None:
    patcher = model()
    with pytest.raises(SelectionError, match=r"^Invalid range: '4-6': the model has blocks 0-5"):
        swapped(patcher, blocks="4-6")
    assert patcher.model_options == {"transformer_options": {}}


@pytest.mark.parametrize("kind", ["plain", "merged", "scaled", "gguf", "lora"])
def test_handed_back_when_interrupted(kind: str, sim: torch.device) -> None:
    plain = model(kind)
    expected = sample(plain)
    ours, transformer = swapped(plain, blocks="1-4"), plain.model.diffusion_model
    transformer.fails_at = 3
    with pytest.raises(InterruptedError):
        sample(ours)
    transformer.fails_at = None
    assert takeover_on(ours).swap.closed
    assert torch.equal(sample(plain), expected)
    assert torch.equal(sample(ours), expected)


@pytest.mark.parametrize("kind", ["plain", "merged", "scaled", "gguf", "lora"])
def test_runs_that_leave_the_model_where_it_is(kind: str, device: torch.device) -> None:
    """`force_offload` off: the next run of any clone finds a swap that is still open."""
    plain = model(kind)
    expected = sample(plain)
    ours, other = swapped(plain, blocks="0,3"), swapped(plain, blocks_to_swap=5)
    for run in (ours, ours, other, plain, ours, plain):
        assert torch.equal(sample(run, force_offload=False), expected)
    assert own_moves(plain) == []
    assert takeover_on(ours).swap.closed


@pytest.mark.parametrize("kind", ["plain", "merged", "scaled", "gguf", "lora"])
def test_long_videos_that_reload_between_windows(kind: str, device: torch.device) -> None:
    plain = model(kind)
    expected = sample(plain, windows=3)
    ours = swapped(plain, blocks="0,3")
    assert torch.equal(sample(ours, windows=3), expected)
    assert own_moves(plain) == []


def test_a_lora_that_comes_and_goes(device: torch.device) -> None:
    plain = model()
    expected = sample(plain)
    ours = swapped(plain, blocks="0,3")
    sample(ours, force_offload=False)
    assert torch.equal(sample(with_lora(ours)), sample(with_lora(plain)))
    assert not torch.equal(sample(with_lora(ours)), expected)
    assert torch.equal(sample(ours), expected)
    assert torch.equal(sample(plain), expected)


def test_compiled_blocks(device: torch.device) -> None:
    plain = model()
    expected = sample(plain, compiled=True)
    ours = swapped(plain, blocks="0,3")
    for _ in range(2):
        assert torch.equal(sample(ours, compiled=True), expected)
    assert torch.equal(sample(plain, compiled=True), expected)


def test_the_packs_own_swap_on_another_clone_is_its_own(sim: torch.device) -> None:
    """The same moves as on a model that never had the node, whatever ran before."""
    theirs = {"blocks_to_swap": 4, "offload_txt_emb": False, "offload_img_emb": False}
    never, shared = model(), model()
    for patcher in (never, shared):
        patcher.model_options["transformer_options"]["block_swap_args"] = dict(theirs)
    ours = swapped(shared, blocks="0")
    for leave in (True, False):
        sample(ours, force_offload=leave)
        for one in (never, shared):
            one.model.diffusion_model.moved.clear()
        assert torch.equal(sample(shared), sample(never))
        assert own_moves(shared) == own_moves(never) != []
        for patcher in (shared, never):
            patcher.model_options["transformer_options"].pop("block_swap_args", None)
            sample(patcher)
            patcher.model_options["transformer_options"]["block_swap_args"] = dict(theirs)
        for name in wrapper_names.SETTINGS:
            settings = [getattr(m.model.diffusion_model, name) for m in (shared, never)]
            assert settings[0] == settings[1], name


def test_what_stands_in_front_of_its_functions_does_so_once() -> None:
    patcher = model()
    swapped(patcher, blocks="0")
    fronts = [getattr(part("nodes_sampler"), name) for name in wrapper_names.FUNCTIONS]
    swapped(swapped(model(), blocks="1"), blocks="2")
    assert [getattr(part("nodes_sampler"), name) for name in wrapper_names.FUNCTIONS] == fronts
    homes = [part(home) for home, _, _ in wrapper_names.FUNCTIONS.values()]
    assert [vars(h)[n] for h, n in zip(homes, wrapper_names.FUNCTIONS, strict=True)] == fronts
    assert all(hasattr(front, "__wrapped__") for front in fronts)


def test_layers_that_the_pack_moves_itself_have_one_owner() -> None:
    with pytest.raises(ModelError, match=r"vram_management_args.* take those off its loader"):
        swapped(model("plain managed"), blocks="0")


ASKED: tuple[dict[str, Any], ...] = (
    {"blocks": "0,2-3"},
    {"blocks": "0-5", "vace_blocks_to_swap": 2, "offload_txt_emb": True},
    {"blocks_to_swap": 4},
    {"blocks_to_swap": 0},
    {"vram_budget": "64KiB", "blocks": "1-4"},
    {},
)


@pytest.mark.parametrize("kind", ["plain", "vace"])
def test_the_plan_before_a_run_is_what_the_node_says_and_does(
    kind: str, sim: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(host, "show_text", lambda _, text, *__: told.append(text))
    monkeypatch.setattr(swap_node.BlockSwapNode, "hidden", SimpleNamespace(unique_id="7"))
    monkeypatch.setattr(
        host, "registered", lambda _: part("nodes_model_loading").WanVideoModelLoader
    )
    patcher, path = model(kind), tmp_path / "wrapped.safetensors"
    save_file(patcher.model.pipeline["sd"], path)
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(path))
    asked = {"loader": "WanVideoModelLoader", "file": path.name, "args_node": "Other"}
    for args in ASKED:
        before = plan_route.planned({**asked, "args": args})
        ours = swapped(patcher, **args)
        said, _, foretold = before.partition("; foretold for weights as the file stores them, ")
        assert told.pop() == said
        exact = said.endswith(" are streamed")
        assert exact == ("vram_budget" not in args and bool(args))
        sample(ours)
        now = told.pop(0)  # with what stays: known when its sampler starts
        assert now.startswith("plan: ")
        # How many stay, which, the bytes that are streamed and those on the device, but for single
        # numbers that the model has and the file has not.
        plan, root = takeover_on(ours).swap.plan, patcher.model.diffusion_model
        assert (
            f"{len(plan.residents)} of {len(plan.units)} units stay, {len(streamed(ours))} " in now
        )
        need = format_bytes(plan.device_bytes)
        in_file = format_bytes(plan.device_bytes - 512 * len(list(root.buffers())))
        assert f"{need} of weights and slots" in now
        assert foretold == f"not quantised by the loader, without LoRAs: {now}".replace(
            f"{need} of", f"{in_file} of"
        )
        if exact:
            named = re.search(r"\((.*)\) are", said)
            assert (name_runs(streamed(ours)) if streamed(ours) else None) == (named and named[1])
        told.clear()
    for more, said in (
        ({"args": {"blocks": "6"}}, r"^plan: Invalid range: '6': the model has blocks 0-5"),
        ({"joined": True}, r"joins another module to its file.*told on the node then"),
        ({"managed": True}, r"vram_management_args.* take those off its loader"),
    ):
        assert re.search(said, plan_route.planned({**asked, "args": {}, **more}))
    monkeypatch.delattr(part("utils"), "init_blockswap")
    assert "no init_blockswap, which we would" in plan_route.planned({**asked, "args": {}})


def test_the_report_after_a_run(sim: torch.device) -> None:
    ours = swapped(model(), blocks="0,3")
    text, _ = BlockSwapReportNode.execute(ours).result
    assert "its blocks are streamed here, its own swap is off; plan: 2 of 7 units" in text
    sample(ours)
    text, picture = BlockSwapReportNode.execute(ours, free_host_memory=True).result
    assert "2 of 6 blocks" in text
    assert picture.shape[1] > 64


# A version of the pack that lacks what we work through: its own swap, with an exact count.


def _lacks(name: str, patcher: Any, patch: pytest.MonkeyPatch) -> None:
    kind, _, last = name.partition(":")
    transformer = patcher.model.diffusion_model
    if kind == "attribute":
        delattr(transformer, last)
    elif kind == "pipeline":
        del patcher.model.pipeline[last]
    elif kind == "function":
        patch.delattr(part(wrapper_names.FUNCTIONS[last][0]), last)
    elif kind == "caller":
        patch.setattr(part("nodes_sampler"), last, lambda *_: None)
    elif kind == "body":
        patch.setattr(part(wrapper_names.FUNCTIONS[last][0]), last, _empty(last))
    else:
        patch.setattr(type(transformer), last, lambda *_: None)


def _empty(name: str) -> Any:
    first = ", ".join(wrapper_names.FUNCTIONS[name][1])
    made: dict[str, Any] = {}
    exec(f"def {name}({first}=None, *_, **__): pass", made)
    return made[name]


TAKEN = [
    *(f"attribute:{name}" for name in wrapper_names.ATTRIBUTES),
    *(f"pipeline:{name}" for name in wrapper_names.PIPELINE),
    *(f"{kind}:{n}" for kind in ("function", "caller", "body") for n in wrapper_names.FUNCTIONS),
    "method:forward",
    "method:block_swap",
]


@pytest.mark.parametrize("taken", TAKEN)
def test_a_name_that_is_gone(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = model()
    _lacks(taken, patcher, monkeypatch)
    ours = swapped(patcher, blocks_to_swap=3)
    asked = ours.model_options["transformer_options"]["block_swap_args"]
    assert asked["blocks_to_swap"] == 4
    assert wrapper_doors.wish_in(asked) is None
    text, _ = BlockSwapReportNode.execute(ours).result
    assert "swaps blocks itself (this version of it has no " in text
    assert taken.partition(":")[2] in text
    for refused in ({"blocks": "0"}, {"vram_budget": "1GiB"}):
        with pytest.raises(ArgsError, match=r"WanVideoWrapper, whose own block swap .* give"):
            swapped(patcher, **refused)
