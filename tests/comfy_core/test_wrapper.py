"""The wrapper pack's models on our engine, with a stand-in that has the real one's order of calls.

Every way in which that pack places weights, on the CPU and on the simulated accelerator: streamed
is what was asked, its own swap has moved nothing, latents are those without the node.
"""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import wrapper_packs

from blockswap import BlockSwapArgs
from blockswap.errors import ArgsError, ModelError, PlanError, SelectionError
from blockswap.nodes.report_node import BlockSwapReportNode
from blockswap.nodes.swap_node import BlockSwapNode
from blockswap.nodes.wrapper import doors as wrapper_doors
from blockswap.nodes.wrapper import names as wrapper_names
from blockswap.nodes.wrapper.pack import takeover_on

NAME = "wrapper_stand_in"
BLOCKS = 6
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


def part(name: str) -> Any:
    return importlib.import_module(f"{NAME}.{name}")


def model(kind: str = "plain") -> Any:
    (patcher,) = part("nodes_model_loading").WanVideoModelLoader().load(kind)
    return with_lora(patcher) if "lora" in kind else patcher


def with_lora(patcher: Any) -> Any:
    clone = patcher.clone()
    draw = torch.Generator().manual_seed(5)
    for number in range(BLOCKS):
        pair = (torch.randn(16, 2, generator=draw), torch.randn(2, 16, generator=draw))
        clone.patches[f"blocks.{number}.q.weight"] = [pair]
    return clone


def sample(patcher: Any, **options: Any) -> torch.Tensor:
    latents: torch.Tensor = part("nodes_sampler").sample(patcher, **options)
    assert torch.isfinite(latents).all()
    return latents


def swapped(patcher: Any, **asked: Any) -> Any:
    (clone,) = BlockSwapNode.execute(patcher, BlockSwapArgs(**asked).to_mapping()).result
    return clone


def streamed(patcher: Any) -> tuple[str, ...]:
    """The units that were brought to the device in the last run."""
    takeover = takeover_on(patcher)
    assert takeover is not None
    assert takeover.swap is not None
    assert takeover.swap.closed
    return tuple(sorted({v.unit for v in takeover.swap.measured().visits if v.tier != "resident"}))


def own_moves(patcher: Any) -> list[Any]:
    """What the pack's own loop has moved."""
    return list(patcher.model.diffusion_model.moved)


def names(*blocks: int) -> tuple[str, ...]:
    return tuple(f"blocks.{number}" for number in blocks)


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


def test_the_report_after_a_run(sim: torch.device) -> None:
    ours = swapped(model(), blocks="0,3")
    text, _ = BlockSwapReportNode.execute(ours).result
    assert text.endswith("its blocks are streamed here, its own swap is off")
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
