"""What diffusers does beside a swap: adapters are chosen, other parts of a pipeline offloaded."""

import pytest
import torch

from blockswap import BlockSwapArgs, swap_blocks

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

BLOCKS, WIDTH = 4, 64


def tiny_transformer():
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        ffn_dim=128,
        num_layers=BLOCKS,
        text_dim=WIDTH,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    return model


def tiny_pipeline():
    transformer = tiny_transformer()
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2)
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=encoder.eval(),
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
    )


def frames(pipe, device):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=torch.ones(1, 5, WIDTH, device=device),
        negative_prompt_embeds=torch.zeros(1, 5, WIDTH, device=device),
        height=16,
        width=16,
        num_frames=5,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).frames.cpu()


def forward(model, device):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, 3, 8, 8, generator=draw).to(device),
            timestep=torch.full((1,), 500, device=device),
            encoder_hidden_states=torch.randn(1, 5, WIDTH, generator=draw).to(device),
            return_dict=False,
        )[0].cpu()


def lora(seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"A": (4, WIDTH), "B": (WIDTH, 4)}
    return {
        f"transformer.blocks.{block}.attn1.to_q.lora_{half}.weight": torch.randn(
            shape, generator=draw
        )
        for block in range(BLOCKS)
        for half, shape in shapes.items()
    }


def with_two_adapters():
    model = tiny_transformer()
    model.load_lora_adapter(lora(1), adapter_name="a", prefix="transformer")
    model.load_lora_adapter(lora(2), adapter_name="b", prefix="transformer")
    return model


def test_the_other_parts_of_a_pipeline_are_offloaded_by_diffusers(sim_device, sim):
    whole = tiny_pipeline().to(sim_device)
    want = frames(whole, sim_device)
    del whole
    pipe = tiny_pipeline()
    with swap_blocks(pipe.transformer, BlockSwapArgs(blocks_to_swap=3), device=sim_device):
        pipe.enable_group_offload(
            onload_device=sim_device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            exclude_modules=["transformer"],
        )
        assert torch.equal(frames(pipe, sim_device), want)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "ab", "a")], ids="-".join)
def test_adapters_loaded_before_the_swap_are_chosen_while_swapped(sim_device, sim, order):
    reference, model = with_two_adapters().to(sim_device), with_two_adapters()
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device=sim_device):
        seen = []
        for names in order:
            for each in (reference, model):
                each.set_adapters(list(names), [0.5] * len(names))
            seen.append(forward(model, sim_device))
            assert torch.equal(seen[-1], forward(reference, sim_device))
        assert not torch.equal(seen[0], seen[1])  # the adapters do something


def test_an_adapter_is_deleted_and_hotswapped_while_swapped_on_the_cpu():
    reference, model = with_two_adapters(), with_two_adapters()
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device="cpu"):
        for each in (reference, model):
            each.load_lora_adapter(lora(3), adapter_name="a", prefix="transformer", hotswap=True)
            each.delete_adapters("b")
        assert torch.equal(forward(model, "cpu"), forward(reference, "cpu"))
