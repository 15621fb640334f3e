"""Trains the demo's Wan transformer on drawn moving shapes, on a CPU, within a set time.

Run from the repository root:

    python examples/train_demo/train.py --minutes 54 --out build/train_demo

A run that was stopped goes on where its last snapshot stands when it is started again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from diffusers import WanTransformer3DModel
from muon import Muon
from torch import Tensor

from blockswap.demo.latents import CHANNELS, COORDINATES, pack, with_coordinates
from blockswap.demo.prompt import NULL_TOKEN, TEXT_DIM, encode_tokens
from blockswap.demo.shapes import draw_scenes, random_scenes, random_tokens

MODEL = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": CHANNELS + COORDINATES,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 8,
    "cross_attn_norm": True,
}


@dataclass(frozen=True)
class Settings:
    """What one run needs to know."""

    out: Path
    minutes: float
    batch: int
    seed: int
    rate: float
    compiled: bool
    warmup_steps: int = 50
    ema: float = 0.97
    snapshot_minutes: float = 1.5
    log_steps: int = 20
    drop_prompt: float = 0.1
    drop_word: float = 0.05


@dataclass
class Run:
    """The moving state of a run, all of it kept in a snapshot."""

    model: WanTransformer3DModel
    averaged: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    generator: torch.Generator
    step: int = 0
    minutes: float = 0.0


def start(settings: Settings) -> Run:
    """A fresh run, or the one whose snapshot lies in the output folder."""
    torch.manual_seed(settings.seed)
    model = WanTransformer3DModel(**MODEL).train()
    set_out(model, torch.Generator().manual_seed(settings.seed + 1))
    optimizers = optimizers_for(model)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    run = Run(model, averaged, optimizers, torch.Generator().manual_seed(settings.seed))
    snapshot = settings.out / "snapshot.pt"
    if snapshot.exists():
        state = torch.load(snapshot, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        run.generator.set_state(state["generator"])
        run.averaged, run.step, run.minutes = state["averaged"], state["step"], state["minutes"]
    if settings.compiled:
        # Block by block and in place, so that the weights keep their names.
        for block in model.blocks:
            block.compile()
    return run


def optimizers_for(model: WanTransformer3DModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    known = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(inside, lr=0.02),
        torch.optim.AdamW(outside, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
    ]


@torch.no_grad()
def set_out(model: WanTransformer3DModel, generator: torch.Generator) -> None:
    """Starts the model as one that hands the drawable part of its input through.

    Drawn patches fill few of their 192 directions. Patches go in along those (principal components,
    faint ones fading out) and come out along the same, so that noise along all the others never
    crowds the blocks. The blocks add nothing at first, but their gates are open.
    """
    tokens = random_tokens(128, generator)
    patches = model_patches(pack(draw_scenes(random_scenes(tokens, generator))))
    _, spread, basis = torch.linalg.svd(patches / len(patches) ** 0.5, full_matrices=False)
    rows = basis * (spread**2 / (spread**2 + 0.15**2)).unsqueeze(1)
    into, out = model.patch_embedding, model.proj_out
    torch.nn.init.zeros_(into.weight)
    into.weight[:, :CHANNELS] = rows.reshape(-1, CHANNELS, 1, 2, 2)
    # In as (channel, frame, row, column), out as (frame, row, column, channel).
    out.weight.copy_(into.weight[:, :CHANNELS].permute(2, 3, 4, 1, 0).reshape(out.weight.shape))
    for zero in (into.bias, out.bias):
        zero.zero_()
    # Coordinates go where the patches leave room.
    torch.nn.init.normal_(into.weight[64:, CHANNELS:], std=0.07, generator=generator)
    # A constant in the faintest direction lets patches keep their strength through layer norms.
    into.bias[-1] = 4.0
    model.scale_shift_table[:, 1] = -0.5
    for block in model.blocks:
        block.scale_shift_table[:, (2, 5)] = 1.0
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            last.weight.zero_()
            last.bias.zero_()


def model_patches(latents: Tensor) -> Tensor:
    """Latents `[batch, 48, frames, rows, columns]` as patches `[patches, 192]`."""
    pairs = latents.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
    return pairs.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, CHANNELS * 4)


def save(run: Run, settings: Settings) -> None:
    """Writes a snapshot in one move, so that a reader never meets half a file."""
    state = {
        "model": run.model.state_dict(),
        "averaged": run.averaged,
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "generator": run.generator.get_state(),
        "step": run.step,
        "minutes": run.minutes,
    }
    part = settings.out / "snapshot.part"
    torch.save(state, part)
    os.replace(part, settings.out / "snapshot.pt")


def draw_batch(settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean latents `[batch, 48, frames, 8, 8]` and text vectors `[batch, 3, text_dim]`."""
    tokens = random_tokens(settings.batch, generator)
    clean = pack(draw_scenes(random_scenes(tokens, generator)))
    # Left-out words teach the model to choose for itself, and give guidance its second pass.
    drop = torch.rand(tokens.shape, generator=generator) < settings.drop_word
    drop |= torch.rand((settings.batch, 1), generator=generator) < settings.drop_prompt
    return clean, encode_tokens(tokens.masked_fill(drop, NULL_TOKEN))


def draw_noise_levels(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels `[batch]` of 0 to 1, mostly high.

    A clip is so redundant that its shape and place are settled while it still looks like noise, and
    its direction even earlier, where there is nothing to go by but the word.
    """
    levels = torch.sigmoid(1.2 + 1.3 * torch.randn(batch, generator=generator))
    flat = torch.rand(batch, generator=generator)
    kind = torch.rand(batch, generator=generator)
    levels = torch.where(kind < 0.10, flat, levels)
    return torch.where(kind > 0.70, 0.93 + 0.07 * flat, levels)


def loss_of(model: WanTransformer3DModel, settings: Settings, generator: torch.Generator) -> Tensor:
    """The flow-matching loss of one fresh batch.

    The model names the clean clip, from which the velocity follows as (noisy - clean) / level: an
    8 x 8 patch holds as many numbers as the model is wide, so it could not carry the noise as well.
    """
    clean, text = draw_batch(settings, generator)
    level = draw_noise_levels(settings.batch, generator)
    mix = level[:, None, None, None, None]
    noisy = (1 - mix) * clean + mix * torch.randn(clean.shape, generator=generator)
    (guess,) = model(with_coordinates(noisy), level * 1000, text, return_dict=False)
    # Dividing by the level makes it a loss of velocities; its floor keeps faint noise from ruling.
    return ((guess - clean) / mix.clamp(min=0.25)).square().mean()


def pace(run: Run, settings: Settings) -> float:
    """Share of the full learning rate: warm-up by steps, then a cosine over the time given."""
    done = min(run.minutes / settings.minutes, 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return settings.rate * min((run.step + 1) / settings.warmup_steps, 1.0) * max(cosine, 0.01)


def advance(run: Run, settings: Settings) -> float:
    """One step of training; returns its loss."""
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * pace(run, settings)
        optimizer.zero_grad(set_to_none=True)
    loss = loss_of(run.model, settings, run.generator)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
    run.step += 1
    keep = min(settings.ema, (1 + run.step) / (10 + run.step))
    averaged = list(run.averaged.values())
    torch._foreach_lerp_(
        averaged, [run.model.state_dict()[name] for name in run.averaged], 1 - keep
    )
    return float(loss.detach())


def open_log(run: Run, settings: Settings) -> TextIO:
    """The log, less any rows of steps that came after the snapshot and were lost."""
    path = settings.out / "log.csv"
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    kept = [row for row in rows if int(row.split(",")[0]) <= run.step]
    file = path.open("w", newline="")
    file.write("\n".join(["step,minutes,loss,pace", *kept]) + "\n")
    file.flush()
    return file


def train(run: Run, settings: Settings) -> None:
    """Trains until the time is up, logging and saving along the way."""
    losses: list[float] = []
    saved = run.minutes
    with open_log(run, settings) as log:
        while run.minutes < settings.minutes:
            began = time.monotonic()
            losses.append(advance(run, settings))
            run.minutes += (time.monotonic() - began) / 60
            if run.step % settings.log_steps == 0:
                mean, rate = sum(losses) / len(losses), pace(run, settings)
                log.write(f"{run.step},{run.minutes:.2f},{mean:.5f},{rate:.4f}\n")
                log.flush()
                losses.clear()
            if run.minutes - saved > settings.snapshot_minutes:
                save(run, settings)
                saved = run.minutes
    save(run, settings)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/train_demo"))
    parser.add_argument(
        "--minutes", type=float, default=54.0, help="training time, snapshots aside"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.0, help="share of the learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compiled", action="store_true", help="needs a C++ compiler; ~1.4x faster"
    )
    settings = Settings(**vars(parser.parse_args()))
    settings.out.mkdir(parents=True, exist_ok=True)
    train(start(settings), settings)


if __name__ == "__main__":
    main()
