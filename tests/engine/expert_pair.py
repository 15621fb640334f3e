"""Two models of one family with other weights, as the experts of Wan 2.2 are, on one pool."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import forward, fresh, metadata, skeleton, unit_bytes
from safetensors.torch import save_file
from torch import nn

from blockswap import BlockSwapArgs, Swap, open_experts, swap_experts

EXPERTS = 2


def expert(number: int, family: str) -> nn.Module:
    """On the CPU, equal weights every time; the second one's are three quarters of the first's."""
    model = fresh(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.75**number)
    return model


@functools.cache
def expected(number: int, family: str, device: torch.device) -> torch.Tensor:
    """What the unswapped expert returns on the device."""
    with torch.no_grad():
        return forward(expert(number, family).to(device), family, device)


def write_experts(folder: Path, family: str) -> list[Path]:
    paths = [folder / f"{family}-{number}.safetensors" for number in range(EXPERTS)]
    for number, path in enumerate(paths):
        if not path.exists():
            save_file(expert(number, family).state_dict(), path, metadata=metadata(family))
    return paths


@contextmanager
def experts(
    store: str, family: str, device: torch.device, args: Mapping[str, Any], folder: Path
) -> Iterator[tuple[Sequence[nn.Module], Sequence[Swap]]]:
    """Both experts, opened together; what is still open at the end is closed."""
    extra: dict[str, Any] = {}
    if store == "pageable":
        extra = {"ram_budget": unit_bytes(family) // 3}
    elif store == "file-ram":
        extra = {"ram_budget": "1GiB"}
    elif store == "file-both":
        extra = {"ram_budget": 3 * 1024 * 1024 if family != "mini" else 72 * 1024}
    wanted = BlockSwapArgs(**args, **extra)
    models: Sequence[nn.Module]
    if store in ("ram", "pageable"):
        models = [expert(number, family) for number in range(EXPERTS)]
        swaps: Sequence[Swap] = swap_experts(models, wanted, device=device)
    else:
        built = [skeleton(family) for _ in range(EXPERTS)]
        models = open_experts(
            write_experts(folder, family),
            wanted,
            device=device,
            skeletons=None if built[0] is None else [model for model in built if model is not None],
        )
        swaps = [model.blockswap for model in models]  # type: ignore[misc]
    try:
        yield models, swaps
    finally:
        for swap in swaps:
            swap.close()


def run(models: Sequence[nn.Module], order: str, family: str, device: torch.device) -> None:
    """Runs the experts in the order of their letters ("aab") and compares every output."""
    with torch.no_grad():
        for at, letter in enumerate(order):
            number = "ab".index(letter)
            out = forward(models[number], family, device)
            assert torch.equal(out, expected(number, family, device)), f"{order}, forward {at}"
