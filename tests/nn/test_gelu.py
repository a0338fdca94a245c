import pytest
import torch
from torch.nn import functional as F

from ldm.nn import gelu
from ldm.nn.gelu import gelu_tanh, twice_differentiable


def torchs(x):
    return F.gelu(x, approximate="tanh")


def answers(function, x, looked_for):
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, looked_for)[0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2)]
)
def test_it_is_torchs_and_so_is_its_gradient(dtype, tolerance, monkeypatch):
    """Over several slices, the last of them not full, and out to where it is 0 or x."""
    monkeypatch.setattr(gelu, "SLICE", 100)
    x = torch.linspace(-12, 12, 2_345, dtype=torch.float64).to(dtype).view(5, 469)
    x = torch.cat([x, x.flip(0)], dim=1)[:, ::2]  # not in one piece
    looked_for = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for ours, reference in zip(*(answers(f, x, looked_for) for f in (gelu_tanh, torchs)), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


def test_what_is_infinite_stays_so():
    x = torch.tensor([float("inf"), -1e30, 1e30], requires_grad=True)
    y = gelu_tanh(x)
    torch.testing.assert_close(y, torch.tensor([float("inf"), 0.0, 1e30]))


def test_transforms_and_compilers_see_torchs():
    """Their rules know it: a Jacobian-vector product and a compiled graph work."""
    x, tangent = torch.randn(7), torch.randn(7)
    expected = torch.func.jvp(torchs, (x,), (tangent,))
    with_gradient = x.clone().requires_grad_()
    for ours, reference in zip(
        torch.func.jvp(gelu_tanh, (with_gradient,), (tangent,)), expected, strict=True
    ):
        torch.testing.assert_close(ours, reference)
    compiled = torch.compile(gelu_tanh, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(with_gradient), torchs(x))


def test_a_second_derivative_is_refused_unless_it_was_announced():
    x = torch.linspace(-3, 3, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="twice_differentiable"):
        torch.autograd.grad(gelu_tanh(x).sum(), x, create_graph=True)
    seconds = []
    for function in (gelu_tanh, torchs):
        with twice_differentiable():
            (gradient,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.sum(), x)[0])
    torch.testing.assert_close(*seconds)
