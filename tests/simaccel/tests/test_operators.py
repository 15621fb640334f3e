"""Operators give what the CPU gives, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import simaccel as sim

pytestmark = pytest.mark.usefixtures("mode")


def inputs() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def rope(x: torch.Tensor) -> torch.Tensor:
    angles = torch.arange(4.0, device=x.device).outer(torch.ones(4, device=x.device))
    turns = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.view(4, 4, 2))
    return torch.view_as_real(pairs * turns).flatten(1)


def through_fp8(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float8_e4m3fn).view(torch.uint8).view(torch.float8_e4m3fn).float()


def scaled_mm(x: torch.Tensor) -> torch.Tensor:
    a = x.repeat(4, 2).to(torch.float8_e4m3fn)
    one = torch.ones((), device=x.device)
    return torch._scaled_mm(a, a.t(), one, one, out_dtype=torch.bfloat16)


def views_of_a_slab(x: torch.Tensor) -> torch.Tensor:
    slab = torch.zeros(256, dtype=torch.uint8, device=x.device)
    slab[64:192].view(torch.float32).view(4, 8).copy_(x)
    return slab


def changed_in_place(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[1:3, ::2] *= 2
    y.transpose(0, 1)[0].fill_(3)
    return y.clamp_(-1, 1)


OPERATIONS = {
    "matmul": lambda x: x @ x.t(),
    "linear": lambda x: F.linear(x, x, x[:, 0]),
    "reductions": lambda x: torch.stack([x.sum(), x.mean(), x.std(), x.amax()]),
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "cat and chunk": lambda x: torch.cat(x.chunk(4, dim=1)[::-1]),
    "where": lambda x: torch.where(x > 0, x, torch.tensor(0.5)),
    "index": lambda x: x[torch.tensor([2, 0])],
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: torch.nonzero(x > 0),
    "masked write": lambda x: x.clone().index_put_((x > 0,), torch.tensor(0.0)),
    "unique": lambda x: torch.unique((x * 3).int()),
    "topk": lambda x: x.topk(3)[1],
    "cumsum": lambda x: x.cumsum(1),
    "int and float": lambda x: torch.arange(3, device=x.device) * 2.5,
    "double": lambda x: x.double().exp(),
    "half by a number": lambda x: x.bfloat16() * 1.7,
    "conv3d": lambda x: F.conv3d(x.view(1, 1, 2, 4, 4), x.view(2, 1, 1, 4, 4)[:, :, :, :2, :2]),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 2, 4, 4)] * 3),
    "masked attention": lambda x: F.scaled_dot_product_attention(
        *[x.view(1, 2, 4, 4)] * 3, attn_mask=torch.ones(4, 4, device=x.device).tril().bool()
    ),
    "interpolate": lambda x: F.interpolate(x.view(1, 1, 4, 8), scale_factor=2.0),
    "foreach": lambda x: torch._foreach_mul([x, x + 1], 2.0)[1],
    "sort out=": lambda x: torch.sort(x, out=(torch.empty_like(x), torch.empty_like(x).long()))[1],
    "out= that grows": lambda x: torch.add(x, 1, out=torch.empty(0, device=x.device)),
    "complex rope": rope,
    "fp8": through_fp8,
    "scaled_mm": scaled_mm,
    "slab": views_of_a_slab,
    "in place": changed_in_place,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_same_as_on_the_cpu(name):
    operation = OPERATIONS[name]
    expected = operation(inputs())
    result = operation(inputs().to("sim"))
    assert result.device == torch.device("sim:0")
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_backward():
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 8)
    )
    other = copy.deepcopy(module).to("sim")
    module(inputs()).square().sum().backward()
    other(inputs().to("sim")).square().sum().backward()
    for expected, result in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(result.grad.cpu(), expected.grad)


@pytest.mark.parametrize("shape", [(1, 2, 5, 8)])
def test_attention_backward(shape):
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().to("sim").requires_grad_()
    for tensor in (x, y):
        F.scaled_dot_product_attention(tensor, tensor, tensor).square().sum().backward()
    torch.testing.assert_close(y.grad.cpu(), x.grad)


def test_convolution_backward():
    module = torch.nn.Conv2d(1, 2, 3)
    other = copy.deepcopy(module).to("sim")
    x = inputs().view(1, 1, 4, 8)
    module(x).square().sum().backward()
    other(x.to("sim")).square().sum().backward()
    torch.testing.assert_close(other.weight.grad.cpu(), module.weight.grad)
    torch.testing.assert_close(other.bias.grad.cpu(), module.bias.grad)


def test_wrong_shapes_are_refused_at_once():
    x = inputs().to("sim")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        x @ x


def test_random_numbers_are_those_of_a_cpu_generator():
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, device="sim").cpu(), expected)
    for device in ("cpu", "sim"):
        generator = torch.Generator(device).manual_seed(3)
        assert torch.equal(torch.randn(5, device="sim", generator=generator).cpu(), expected)
    state = torch.sim.get_rng_state()
    first = torch.rand(3, device="sim")
    torch.sim.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="sim"), first)


def test_autocast():
    module = torch.nn.Linear(8, 8, device="sim")
    x = inputs().to("sim")
    with torch.autocast("sim", dtype=torch.bfloat16):
        y = module(x)
        assert y.dtype == torch.bfloat16
        assert y.softmax(-1).dtype == torch.float32
        assert torch.cat([y, x]).dtype == torch.float32
        assert F.scaled_dot_product_attention(*[x.view(1, 2, 4, 4)] * 3).dtype == torch.bfloat16
    assert module(x).dtype == torch.float32


def test_autocast_caches_the_cast_of_a_leaf_that_requires_grad():
    x = torch.ones(2, 2, device="sim")
    for requires_grad, second in ((True, 2.0), (False, 6.0)):
        weight = torch.nn.Parameter(torch.ones(2, 2, device="sim"), requires_grad=requires_grad)
        with torch.autocast("sim", dtype=torch.bfloat16):
            assert F.linear(x, weight).unique().tolist() == [2.0]
            with torch.no_grad():
                weight.fill_(3.0)
            assert F.linear(x, weight).unique().tolist() == [second]


def test_module_moves_keep_the_parameters():
    module = torch.nn.Linear(2, 2)
    weight = module.weight
    module.to("sim")
    assert module.weight is weight  # `.data` is assigned across devices, as on CUDA
    assert weight.device == torch.device("sim:0")
    assert module.to("cpu").weight.device == torch.device("cpu")


def test_inference_mode_and_no_grad():
    x = inputs().to("sim")
    with torch.inference_mode():
        assert (x * 2).is_inference()
    with torch.no_grad():
        assert not (x * 2).requires_grad


def test_copies_pickles_and_prints(tmp_path):
    x = inputs().to("sim")
    assert torch.equal(copy.deepcopy(x), x)
    torch.save(x, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt")
    assert loaded.device == x.device
    assert torch.equal(loaded, x)
    assert torch.load(tmp_path / "x.pt", map_location="cpu").device.type == "cpu"
    assert "device='sim:0'" in repr(x)


def test_repeated_shapes_are_remembered_with_everything_that_matters():
    x = inputs().to("sim")
    assert F.layer_norm(x, (8,)).dtype == torch.float32
    assert F.layer_norm(x.bfloat16(), (8,)).dtype == torch.bfloat16
    assert torch.native_group_norm(x.view(1, 4, 8), None, None, 1, 4, 8, 2, 1e-5)[1].shape == (1, 2)
    assert torch.native_group_norm(x.view(1, 4, 8), None, None, 1, 4, 8, 4, 1e-5)[1].shape == (1, 4)


def test_op_without_a_meta_kernel_is_no_host_sync():
    x = inputs().to("sim")
    before = sim.counters()
    result = torch.geqrf(x)[0]
    after = sim.counters()
    assert (after.probes - before.probes, after.host_syncs - before.host_syncs) == (1, 0)
    torch.testing.assert_close(result.cpu(), torch.geqrf(inputs())[0])
