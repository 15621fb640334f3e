"""Asks the demo model for every prompt and counts how often it draws what it was asked for.

    python examples/train_demo/evaluate.py --clips 2 --sheets build/samples

The clips are judged by measurement (`blockswap.demo.judge`): nearest colour, path of the centre of
mass, and best overlap with a drawn shape.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from blockswap.demo.judge import judge
from blockswap.demo.prompt import COLOURS, DIRECTIONS, SHAPES, VOCABULARY, Prompt, tokens_of
from blockswap.demo.sampling import SamplingSettings, generate
from blockswap.demo.shapes import draw_scenes, random_scenes
from blockswap.demo.video import write_contact_sheet
from blockswap.demo.weights import load_resident, weights_path

DTYPES = {"float32": torch.float32, "shipped": torch.bfloat16}


def drawn(prompt: Prompt, seed: int) -> Tensor:
    """A true clip for the prompt, uint8 `[frames, height, width, 3]`: the judge's own check."""
    generator = torch.Generator().manual_seed(seed)
    clip = draw_scenes(random_scenes(tokens_of([prompt]), generator))[0]
    return (clip * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def report(asked: list[Prompt], seen: list[Prompt], overlaps: list[float]) -> None:
    """Prints the shares of right answers and, for each word, how often it was missed."""
    pairs = list(zip(asked, seen, strict=True))
    for index, kind in enumerate(("colour", "shape", "direction")):
        right = sum(a.words[index] == s.words[index] for a, s in pairs)
        print(f"right {kind:<10} {right:4d} of {len(pairs)}  ({right / len(pairs):.1%})")
    right = sum(a == s for a, s in pairs)
    print(f"all three right  {right:4d} of {len(pairs)}  ({right / len(pairs):.1%})")
    ordered = sorted(overlaps)
    print(f"overlap with the best drawn shape: mean {sum(ordered) / len(ordered):.3f},")
    print(f"  lowest tenth below {ordered[math.ceil(len(ordered) / 10) - 1]:.3f}")
    for index, word in itertools.product(range(3), VOCABULARY[1:]):
        shown = [s.words[index] for a, s in pairs if a.words[index] == word != s.words[index]]
        if shown:
            print(f"  {word}: drawn as {', '.join(map(str, shown))}")


def main() -> None:
    """Reads the command line, draws every prompt and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=weights_path())
    parser.add_argument("--clips", type=int, default=1, help="clips for each of the prompts")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th prompt")
    parser.add_argument("--steps", type=int, default=SamplingSettings.steps)
    parser.add_argument("--guidance", type=float, default=SamplingSettings.guidance)
    parser.add_argument("--shift", type=float, default=SamplingSettings.shift)
    parser.add_argument("--compute", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--truth", action="store_true", help="judge drawn clips, without a model")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each clip")
    args = parser.parse_args()
    prompts = [Prompt(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS)]
    asked = prompts[:: args.every] * args.clips
    dtype = DTYPES[args.compute]
    model = load_resident(args.weights, dtype=None if args.compute == "shipped" else dtype)
    seen, overlaps = [], []
    for seed, prompt in enumerate(asked):
        settings = SamplingSettings(seed, args.steps, args.guidance, args.shift)
        clip = drawn(prompt, seed) if args.truth else generate(model, prompt, settings, dtype=dtype)
        verdict = judge(clip)
        seen.append(verdict.prompt)
        overlaps.append(verdict.overlap)
        if args.sheets is not None:
            args.sheets.mkdir(parents=True, exist_ok=True)
            name = "-".join(word or "any" for word in prompt.words)
            write_contact_sheet(clip, args.sheets / f"{name}-{seed}.png")
    report(asked, seen, overlaps)


if __name__ == "__main__":
    main()
