"""Who else touches a block: it works, or the block runs whole with a sentence."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clips import clip, given, loaded, run

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.pieces import Pieces, why_never

diffusers = pytest.importorskip("diffusers")
hooks = pytest.importorskip("diffusers.hooks")


class OtherProcessor:
    """What an IP-adapter or a sparse attention puts in the place of the model's own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def replaced_processor(model: Any) -> None:
    model.blocks[1].attn1.processor = OtherProcessor(model.blocks[1].attn1.processor)


def hooked_part(model: Any) -> None:
    model.blocks[1].ffn.register_forward_pre_hook(lambda module, args: None)


def patched_part(model: Any) -> None:
    inner = model.blocks[1].ffn.forward
    model.blocks[1].ffn.forward = lambda x: inner(x) * 1.0


def other_layer(model: Any) -> None:
    class Odd(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean(dim=1, keepdim=True)

    layer = model.blocks[1].attn1.to_q
    layer.__class__ = Odd


def parallel(model: Any) -> None:
    processor = type(model.blocks[1].attn1.processor)()
    model.blocks[1].attn1.processor = processor
    processor._parallel_config = object()


def fused(model: Any) -> None:
    model.blocks[1].attn1.fuse_projections()


def compiled(model: Any) -> None:
    model.blocks[1]._compiled_call_impl = model.blocks[1]._call_impl


WHOLE = {
    replaced_processor: "the processor of its attn1 is OtherProcessor",
    hooked_part: "hooked on its ffn",
    patched_part: "the forward of its ffn was replaced by other code",
    other_layer: "its attn1.to_q is a Odd, which may look at all tokens together",
    parallel: "its attn1 shares tokens out among devices",
    fused: "the projections of its attn1 are fused",
    compiled: "it is compiled",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("touch", WHOLE, ids=lambda touch: touch.__name__)
def test_a_touched_block_runs_whole_and_says_so(touch: Callable[[Any], None], when: str) -> None:
    workload = clip("t2v")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    said: list[str] = []
    if when == "before":
        touch(model)
    pieces = Pieces(model, 64, said.append)
    if when == "after":
        touch(model)
    if touch is parallel:  # that there are no other devices is no business of ours
        with torch.no_grad(), pytest.raises(Exception, match=r"."):
            model(**inputs)
    else:
        cut = run(model, inputs)
        pieces.remove()
        assert torch.equal(cut, run(model, inputs))
    why = [sentence for sentence in said if sentence.startswith("blocks.1 runs whole")]
    assert len(why) == 1
    assert WHOLE[touch] in why[0]
    assert not [sentence for sentence in said if "blocks.0 runs whole" in sentence]
    assert why_never(model) is not None


def caches() -> dict[str, Any]:
    return {
        "first-block": hooks.FirstBlockCacheConfig(threshold=0.2),
        "mag": hooks.MagCacheConfig(
            num_inference_steps=4, mag_ratios=torch.ones(4), retention_ratio=0.25
        ),
        "taylorseer": hooks.TaylorSeerCacheConfig(cache_interval=2, max_order=1),
        "pab": diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1000),
            current_timestep_callback=lambda: 500,
        ),
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["first-block", "mag", "taylorseer", "pab"])
def test_caches_that_keep_their_input(name: str, when: str) -> None:
    workload = clip("t2v", dtype="float32")

    def steps(tokens: int) -> list[torch.Tensor]:
        model = loaded("t2v", workload)
        if when == "before":
            model.enable_cache(caches()[name])
        pieces = Pieces(model, tokens, lambda sentence: None)
        if when == "after":
            model.enable_cache(caches()[name])
        outputs = []
        with torch.no_grad(), model.cache_context("cond"):
            for seed in range(4):
                outputs.append(model(**given("t2v", workload, seed=seed // 2))[0])
        pieces.remove()
        return outputs

    assert all(map(torch.equal, steps(64), steps(0)))


def test_skipped_layers() -> None:
    workload = clip("t2v", dtype="float32")

    def output(tokens: int) -> torch.Tensor:
        model = loaded("t2v", workload)
        pieces = Pieces(model, tokens, lambda sentence: None)
        hooks.apply_layer_skip(
            model, hooks.LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=False)
        )
        out = run(model, given("t2v", workload))
        pieces.remove()
        return out

    assert torch.equal(output(64), output(0))


def test_hooks_on_all_modules_are_onlookers() -> None:
    workload = clip("t2v")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        if module in model.blocks:
            seen.extend((out, out.clone()))

    handle = torch.nn.modules.module.register_module_forward_hook(keep)
    said: list[str] = []
    pieces = Pieces(model, 64, said.append)
    try:
        assert torch.equal(run(model, inputs), whole)
    finally:
        handle.remove()
        pieces.remove()
    assert all(torch.equal(seen[at], seen[at + 1]) for at in range(0, len(seen), 2))
    assert "is hooked on all modules" in said[0]


def test_a_model_whose_forward_others_replaced_before_keeps_theirs() -> None:
    """As accelerate and diffusers put their hooks around a forward."""
    workload = clip("t2v")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    calls: list[int] = []
    own = model.forward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = functools.wraps(own)(theirs)
    said: list[str] = []
    pieces = Pieces(model, 64, said.append)
    assert torch.equal(run(model, inputs), whole)
    pieces.remove()
    assert calls == [1]
    assert [
        s for s in said if s.endswith("of the model, its forward was replaced by other code before")
    ]
    assert model.forward.__wrapped__ == own


def test_a_class_whose_forward_is_another_one_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("t2v", clip("t2v"))
    assert why_never(model) is None
    kind = type(model.blocks[0])
    before = kind.forward

    def another(self: Any, *args: Any, **kwargs: Any) -> Any:
        return before(self, *args, **kwargs) * 1.01

    for replaced in (functools.wraps(before)(another), another):
        monkeypatch.setattr(kind, "forward", replaced)
        why = why_never(model)
        assert why is not None
        assert f"the forward of {kind.__name__} was replaced by other code" in why


def test_lora_works_in_pieces() -> None:
    peft = pytest.importorskip("peft")
    workload = clip("t2v")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    plain = run(model, inputs)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "net.2"], init_lora_weights=False)
    torch.manual_seed(0)
    model.add_adapter(config)
    model.eval()
    whole = run(model, inputs)
    said: list[str] = []
    pieces = Pieces(model, 64, said.append)
    assert torch.equal(run(model, inputs), whole)
    pieces.remove()
    assert not said
    assert not torch.equal(whole, plain)


def test_gradients_are_left_to_the_hosts_forward() -> None:
    workload = clip("t2v", dtype="float32")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    pieces = Pieces(model, 64, print)
    inputs["hidden_states"].requires_grad_(True)
    model(**inputs)[0].sum().backward()
    assert inputs["hidden_states"].grad is not None
    pieces.remove()


def test_removed_pieces_leave_nothing_behind() -> None:
    model = loaded("t2v", clip("t2v"))
    before = [dict(vars(module)) for module in model.modules()]
    pieces = Pieces(model, 64, print)
    pieces.remove()
    assert [dict(vars(module)) for module in model.modules()] == before


def test_a_compiled_model_runs_whole_and_says_so() -> None:
    workload = clip("t2v")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    with swap_blocks(model, BlockSwapArgs(blocks="0-2", chunk_tokens=64), device="cpu") as swap:
        assert torch.equal(run(model, inputs), whole)
        assert swap.plan.chunk_tokens == 64
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(run(compiled, inputs), whole)
        assert "the model's forward is compiled" in str(swap.report())
        assert "in pieces of" not in swap.status_line()
