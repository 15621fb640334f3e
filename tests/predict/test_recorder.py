"""What is counted, when it begins and when it ends."""

from collections.abc import Iterator

import pytest
import torch

from blockswap.predict.kernels import Kernels
from blockswap.predict.known_values import KnownValues
from blockswap.predict.recorder import Recorder, map_to_meta

KIB = 1024


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    with torch.no_grad(), found:
        yield found


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_result_counts_until_it_is_dropped(recorder: Recorder) -> None:
    x = meta(256)
    assert recorder.live_bytes == KIB
    y = x + 1
    z = y * 2
    assert (recorder.live_bytes, recorder.peak_bytes) == (3 * KIB, 3 * KIB)
    del y
    assert recorder.live_bytes == 2 * KIB
    y = z + z
    assert recorder.peak_bytes == 3 * KIB
    del x, y, z
    assert recorder.live_bytes == 0


def test_views_and_changes_in_place_are_free(recorder: Recorder) -> None:
    x = meta(16, 16)
    views = [x.t(), x[3:], x.reshape(256), x.unsqueeze(0).expand(9, -1, -1), *x.unbind(0)]
    x.add_(1)
    x[2:4].fill_(0)
    assert (recorder.live_bytes, recorder.peak_bytes) == (KIB, KIB)
    del x
    assert recorder.live_bytes == KIB  # the views hold it
    views.clear()
    assert recorder.live_bytes == 0


def test_sizes_are_rounded_as_the_allocator_does(recorder: Recorder) -> None:
    kept = [meta(1), meta(128), meta(129), meta(0)]
    assert recorder.live_bytes == 512 + 512 + 1024
    kept.clear()


def test_an_operation_with_several_results(recorder: Recorder) -> None:
    x = meta(256)
    values, places = x.sort()
    assert recorder.live_bytes == KIB + KIB + 2 * KIB
    del values, places


def test_weights_are_not_activations() -> None:
    weight = meta(256)
    recorder = Recorder([weight])
    with torch.no_grad(), recorder:
        y = weight.view(16, 16).t()
        assert recorder.live_bytes == 0
        z = y + 1
        assert recorder.live_bytes == KIB
    del z


def test_the_host_computes_for_real(recorder: Recorder) -> None:
    sizes = torch.tensor([3, 4]) * 2
    assert sizes.tolist() == [6, 8]
    assert recorder.peak_bytes == 0


def test_a_host_tensor_that_meets_the_device(recorder: Recorder) -> None:
    table, number = torch.ones(256), torch.tensor(3.0)
    y = meta(256) * table * number
    assert y.device.type == "meta"
    assert recorder.live_bytes == KIB  # of the table nothing: it was there before


def test_what_is_asked_for_on_an_accelerator() -> None:
    """Named or as a device; nothing of that device is started."""
    recorder = Recorder()
    modes = Kernels(recorder, attention="flash", kernels="cuda")
    with torch.no_grad(), recorder, modes:
        made = torch.zeros(256, device="cuda"), torch.zeros(256, device=torch.device("cuda", 1))
        moved = torch.ones(256).to("cuda:0"), torch.ones(256).cuda()
        moved += (torch.ones(256).to(device="cuda", dtype=torch.float64),)
        assert {x.device.type for x in (*made, *moved)} == {"meta"}
        assert torch.zeros(3, device="cpu").tolist() == [0, 0, 0]
    assert recorder.live_bytes == 6 * KIB


def test_a_peak_of_its_own_leaves_the_outer_one(recorder: Recorder) -> None:
    x = meta(2560)
    del x
    base = meta(256)
    with recorder.own_peak() as peak:
        y = base + 1
        del y
        assert peak() == KIB
    assert recorder.peak_bytes == 10 * KIB
    recorder.spike(100 * KIB)
    assert recorder.peak_bytes == 101 * KIB


def test_flops_go_to_the_unit_that_runs() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    recorder = Recorder(model.parameters())
    with torch.no_grad(), recorder, recorder.watching([("first", model[0])]):
        model(meta(5, 8))
        model[0](meta(5, 8))
    assert recorder.unit_flops == {"first": 2 * (2 * 5 * 8 * 16)}
    assert recorder.rest_flops == 2 * 5 * 16 * 4
    assert not model[0]._forward_pre_hooks
    assert not model[0]._forward_hooks


def test_map_to_meta_keeps_strides_and_all_that_is_no_tensor() -> None:
    x = torch.ones(4, 6).t()
    (a, b), c = map_to_meta(((x, 3), {"k": None}), KnownValues())
    assert (a.shape, a.stride(), a.device.type) == (x.shape, x.stride(), "meta")
    assert (b, c) == (3, {"k": None})


def attend(attention: str, kernels: str = "cuda", value_dim: int = 64) -> tuple[int, int]:
    """Peak above the inputs, and FLOPs, of attention of 2 x 256 tokens."""
    q, k = meta(1, 2, 256, 64), meta(1, 2, 512, 64)
    v = meta(1, 2, 512, value_dim)
    recorder = Recorder([q, k, v])
    modes = Kernels(recorder, attention=attention, kernels=kernels)  # type: ignore[arg-type]
    with torch.no_grad(), recorder, modes:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert out.shape == (1, 2, 256, value_dim)
    return recorder.peak_bytes, recorder.rest_flops


def test_attention_kernels() -> None:
    flash, flops = attend("flash")
    assert flash == 2 * 256 * 64 * 4 + 2 * 256 * 4  # output and log-sum-exp
    assert flops == 2 * 2 * 256 * 512 * 128
    assert attend("flash", value_dim=128)[0] == 2 * 256 * 128 * 4 + 2 * 256 * 4
    math, math_flops = attend("math")
    assert math >= 2 * (2 * 256 * 512 * 4)  # scores and their softmax
    assert math_flops == flops


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32, None])
def test_rms_norm_kernels(weight: torch.dtype | None) -> None:
    x = meta(64, 128, dtype=torch.bfloat16)
    scale = None if weight is None else meta(128, dtype=weight)
    peaks = {}
    for kernels in ("cuda", "portable"):
        recorder = Recorder([x] if scale is None else [x, scale])
        modes = Kernels(recorder, attention="flash", kernels=kernels)  # type: ignore[arg-type]
        with torch.no_grad(), recorder, modes:
            out = torch.nn.functional.rms_norm(x, (128,), scale, 1e-6)
        assert out.shape == x.shape
        peaks[kernels] = recorder.peak_bytes
        del out
    fused = weight is not torch.float32
    assert (peaks["cuda"] == 64 * 128 * 2 + 512) == fused
    assert (peaks["cuda"] < peaks["portable"]) == fused
