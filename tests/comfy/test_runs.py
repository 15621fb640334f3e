"""Runs in a real ComfyUI, one after the other in one process: each as without this pack."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from comfy_host.client import Client, Outcome, Rejected
from comfy_host.example_files import EXPERT, FP8_TENSORS, LORA, T2V
from comfy_host.graphs import ARGS, OURS
from comfy_host.sampling import Sampled, prompt

HIGH, LOW = EXPERT.format("high"), EXPERT.format("low")
LORA_HIGH, LORA_LOW = LORA.format("high"), LORA.format("low")
ALL = {"blocks_to_swap": 6}
SOME = {"blocks": "0,2,3-5"}

Latent = Callable[[Sampled], torch.Tensor]


@pytest.fixture(scope="module")
def latent(comfy: Client) -> Latent:
    """The latent of a graph, sampled anew: what ComfyUI remembers of the last run is dropped."""

    def sample(sampled: Sampled) -> torch.Tensor:
        comfy.free()
        found = comfy.latent(comfy.run_well(prompt(sampled)), "latent")
        assert torch.isfinite(found).all()
        return found

    return sample


def plain(sampled: Sampled) -> Sampled:
    """The same graph without our nodes."""
    kept = tuple(node for node in sampled.chain if not node[0].startswith(OURS))
    return replace(sampled, chain=kept, loader="UNETLoader")


@pytest.mark.parametrize(
    "unet", [T2V, HIGH, FP8_TENSORS], ids=["bf16", "fp8_scaled", "fp8 tensors"]
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("order", ["before the swap", "after the swap"])
def test_a_lora_is_applied_as_without_us(unet, strength, order, latent: Latent):
    model = Sampled(unet)
    if order == "before the swap":
        swapped = model.lora(LORA_HIGH, strength).swapped(**SOME)
    else:
        swapped = model.swapped(**SOME).lora(LORA_HIGH, strength)
    expected = latent(plain(swapped))
    assert not torch.equal(expected, latent(Sampled(unet)))  # the LoRA does something
    assert torch.equal(latent(swapped), expected)


def test_several_loras_changed_between_runs(latent: Latent):
    for first, second in ((0.3, 1.0), (1.0, 0.3), (0.0, 0.7)):
        swapped = Sampled(T2V).lora(LORA_HIGH, first).swapped(**ALL).lora(LORA_LOW, second)
        assert torch.equal(latent(swapped), latent(plain(swapped)))


@pytest.mark.parametrize(
    "node",
    [
        ("ModelSamplingSD3", {"shift": 3.0}),
        (
            "SkipLayerGuidanceDiT",
            {
                "double_layers": "1, 3",
                "single_layers": "",
                "scale": 3.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
                "rescaling_scale": 0.0,
            },
        ),
        (
            "EasyCache",
            {"reuse_threshold": 3.0, "start_percent": 0.1, "end_percent": 0.9, "verbose": False},
        ),
    ],
    ids=["sampling shift", "skip-layer guidance", "EasyCache"],
)
def test_another_node_of_the_graph_works_on_either_side(node, latent: Latent):
    name, values = node
    behind = replace(Sampled(T2V).swapped(**SOME).then(name, **values), steps=4)
    before = replace(Sampled(T2V).then(name, **values).swapped(**SOME), steps=4)
    expected = latent(plain(behind))
    assert not torch.equal(expected, latent(replace(Sampled(T2V), steps=4)))
    assert torch.equal(latent(behind), expected)
    assert torch.equal(latent(before), expected)


def test_the_same_model_again_and_again_with_other_seeds(comfy: Client):
    """Without /free between: ComfyUI keeps the model loaded from run to run."""
    seen = []
    for seed in (1, 2, 1):
        for sampled in (Sampled(T2V, seed=seed), Sampled(T2V, seed=seed).swapped(**ALL)):
            seen.append(comfy.latent(comfy.run_well(prompt(sampled)), "latent"))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert torch.equal(seen[4], seen[5])
    assert torch.equal(seen[0], seen[4])
    assert not torch.equal(seen[0], seen[2])


def test_two_samplers_with_other_args_on_one_model(comfy: Client, latent: Latent):
    graph = prompt(Sampled(T2V).swapped(**SOME))
    other = prompt(Sampled(T2V, seed=7).swapped(blocks_to_swap=2, prefetch_blocks=0))
    for key in ("chain0", "chain0-args", "sampler", "latent"):
        node = json.loads(json.dumps(other[key]).replace('["chain0', '["other-chain0'))
        node["inputs"].update(
            {
                name: [f"other-{value[0]}", value[1]]
                for name, value in node["inputs"].items()
                if isinstance(value, list) and value[0] == "sampler"
            }
        )
        graph[f"other-{key}"] = node
    comfy.free()
    outcome = comfy.run_well(graph)
    assert torch.equal(comfy.latent(outcome, "latent"), latent(Sampled(T2V)))
    assert torch.equal(comfy.latent(outcome, "other-latent"), latent(Sampled(T2V, seed=7)))


def test_two_models_in_turn(comfy: Client):
    """The two experts as a person switches between them, with nothing freed by hand."""
    found: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for unet in (HIGH, LOW, HIGH, LOW):
        for swap in (True, False):
            sampled = Sampled(unet, seed=len(found))
            sampled = Sampled(unet).swapped(**ALL) if swap else Sampled(unet)
            outcome = comfy.run_well(prompt(sampled))
            found.setdefault((unet, swap), []).append(comfy.latent(outcome, "latent"))
    for unet in (HIGH, LOW):
        first = found[unet, False][0]
        assert all(torch.equal(first, other) for other in found[unet, True] + found[unet, False])
    assert not torch.equal(found[HIGH, True][0], found[LOW, True][0])


@pytest.mark.parametrize("forward", [0, 1])
@pytest.mark.parametrize("block", [0, 3, 5])
def test_an_interrupt_in_the_middle_of_a_step_leaves_no_trace(block, forward, comfy, latent):
    pressed = Sampled(T2V).swapped(**ALL).then("TestInterruptInBlock", block=block, forward=forward)
    comfy.free()
    outcome = comfy.run(prompt(pressed))
    assert outcome.event("execution_interrupted") is not None
    # At once, with the model as the interrupt left it, then as new, then without us.
    after = comfy.latent(comfy.run_well(prompt(Sampled(T2V).swapped(**ALL))), "latent")
    assert torch.equal(after, latent(Sampled(T2V).swapped(**ALL)))
    assert torch.equal(after, latent(Sampled(T2V)))


def test_an_interrupt_by_the_button(comfy: Client, latent: Latent):
    waiting = comfy.queue(prompt(replace(Sampled(T2V).swapped(**ALL), steps=10_000)))
    while not comfy.get("/queue")["queue_running"]:
        pass
    comfy.interrupt()
    assert comfy.wait(waiting).event("execution_interrupted") is not None
    assert torch.equal(latent(Sampled(T2V).swapped(**ALL)), latent(Sampled(T2V)))


def test_the_same_model_without_our_node_is_the_hosts_again(comfy: Client, latent: Latent):
    """Clones share one model object: a sampler on the plain clone finds its blocks in place."""
    graph = prompt(Sampled(T2V).swapped(**ALL))
    direct = prompt(Sampled(T2V, seed=9))
    graph["direct"] = direct["sampler"]
    graph["direct-latent"] = json.loads(json.dumps(direct["latent"]).replace("sampler", "direct"))
    comfy.free()
    outcome = comfy.run_well(graph)
    assert torch.equal(comfy.latent(outcome, "latent"), latent(Sampled(T2V)))
    assert torch.equal(comfy.latent(outcome, "direct-latent"), latent(Sampled(T2V, seed=9)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"blocks": "3-1"}, "Invalid range: '3-1'"),
        ({"blocks": "a"}, "Invalid integer: 'a'"),
        ({"blocks": "0,2,1.5"}, "Invalid integer: '1.5'"),
        ({"blocks": "-3"}, "Invalid range: '-3'"),
        ({"blocks": "1", "blocks_to_swap": 3}, "blocks_to_swap"),
        ({"vram_budget": "much"}, "much"),
    ],
)
def test_a_mistake_of_grammar_rejects_the_prompt_on_the_args_node(asked, said, comfy: Client):
    graph = prompt(Sampled(T2V).swapped(**asked))
    with pytest.raises(Rejected) as caught:
        comfy.queue(graph)
    assert said in caught.value.text_of("chain0-args")
    assert comfy.get("/queue") == {"queue_running": [], "queue_pending": []}


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("4-6", "Invalid range: '4-6': the model has blocks 0-5"),
        ("38-41", "Invalid range: '38-41': the model has blocks 0-5"),
        ("6", "Invalid range: '6': the model has blocks 0-5"),
    ],
)
def test_what_only_the_model_can_tell_shows_on_the_swap_node(blocks, said, comfy: Client, latent):
    outcome = comfy.run(prompt(Sampled(T2V).swapped(blocks=blocks)))
    error = outcome.event("execution_error")
    assert error is not None
    assert error["node_id"] == "chain0"
    assert error["exception_message"].startswith(said)
    assert torch.equal(latent(Sampled(T2V).swapped(**ALL)), latent(Sampled(T2V)))


def report_of(comfy: Client, sampled: Sampled, **values: object) -> tuple[str, bytes]:
    """What the report node says after the sampler, and its picture."""
    graph = prompt(sampled)
    source = graph["sampler"]["inputs"]["model"]
    inputs = {"model": source, "after": ["sampler", 0], "free_host_memory": False, **values}
    graph["report"] = {"class_type": f"{OURS}Report", "inputs": inputs}
    graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["report", 0]}}
    graph["picture"] = {"class_type": "PreviewImage", "inputs": {"images": ["report", 1]}}
    comfy.free()
    outcome: Outcome = comfy.run_well(graph)
    (text,) = outcome.outputs["shown"]["text"]
    (picture,) = outcome.outputs["picture"]["images"]
    return text, comfy.view(picture)


def test_the_report_tells_what_was_where(comfy: Client):
    text, picture = report_of(comfy, Sampled(T2V).swapped(blocks="1,4"))
    assert "2 of 6 blocks" in text
    assert picture.startswith(b"\x89PNG")


def test_host_memory_is_freed_when_asked_and_built_anew(comfy: Client, latent: Latent):
    report_of(comfy, Sampled(T2V).swapped(**ALL), free_host_memory=True)
    assert torch.equal(latent(Sampled(T2V).swapped(**ALL)), latent(Sampled(T2V)))


@pytest.mark.parametrize("asked", [{}, ALL, SOME, {"ram_budget": "4MiB"}], ids=str)
def test_the_loader_gives_what_the_cores_loader_gives(asked, latent: Latent, comfy: Client):
    graph = prompt(replace(Sampled(T2V), loader=f"{OURS}Loader"))
    if asked:
        graph["args"] = {"class_type": f"{OURS}Args", "inputs": {**ARGS, **asked}}
        graph["model"]["inputs"]["block_swap_args"] = ["args", 0]
    comfy.free()
    assert torch.equal(comfy.latent(comfy.run_well(graph), "latent"), latent(Sampled(T2V)))
