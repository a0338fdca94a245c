import pytest
import torch

from ldm.nn.attention import (
    SDPA,
    CrossAttention,
    Flex,
    MathAttention,
    MatmulAttention,
    SelfAttention,
    XFormers,
)

KERNELS = [SDPA, MathAttention, MatmulAttention, Flex, XFormers]


def built(kernel):
    """The kernel on the device it works on; the test is skipped with the reason where it does not."""
    try:
        return kernel(), "cuda" if kernel in (Flex, XFormers) else "cpu"
    except ValueError as reason:
        pytest.skip(str(reason))


def inputs(device, *, masked, n=21, m=37, width=16):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, width, device=device) for length in (n, m, m))
    mask = None
    if masked:
        mask = torch.rand(2, m, device=device) > 0.5
        mask[:, 0] = True
    return [x.requires_grad_() for x in (q, k, v)], mask


@pytest.mark.parametrize("width", [6, 16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree_with_the_written_formula_and_so_do_their_gradients(kernel, masked, width):
    kernel, device = built(kernel)
    if device == "cuda" and width == 6:
        pytest.skip("kernels of GPUs want heads of a multiple of 8 channels")
    qkv, mask = inputs(device, masked=masked, width=width)
    looked_for = torch.randn(2, 3, 21, width, device=device)
    tolerance = 1e-5 if device == "cpu" else 2e-3  # a GPU multiplies in TF32 here and there
    results = []
    for attention in (kernel, MathAttention()):
        out = attention(*qkv, mask)
        results.append((out, *torch.autograd.grad((out * looked_for).sum(), qkv)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_masked_keys_have_no_influence(kernel):
    kernel, device = built(kernel)
    (q, k, v), _ = inputs(device, masked=False)
    mask = torch.ones(2, 37, dtype=torch.bool, device=device)
    mask[:, 4:] = False
    changed_k, changed_v = k.detach().clone(), v.detach().clone()
    changed_k[:, :, 4:], changed_v[:, :, 4:] = 100.0, -100.0
    torch.testing.assert_close(kernel(q, k, v, mask), kernel(q, changed_k, changed_v, mask))


@pytest.mark.parametrize("kernel", [Flex, XFormers])
def test_kernels_for_gpus_are_refused_without_one_with_reason_and_remedy(kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees none.*network/attention=sdpa"):
        kernel()


def test_self_attention_without_positions_is_permutation_equivariant():
    layer = SelfAttention(width=32, num_heads=4)
    x, order = torch.randn(2, 9, 32), torch.randperm(9)
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]), rtol=1e-4, atol=1e-5)


def test_qk_norm_makes_attention_blind_to_the_queries_scale():
    layer = CrossAttention(width=32, context_width=16, num_heads=4, qk_norm=True)
    torch.nn.init.zeros_(layer.q.bias)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 16)
    torch.testing.assert_close(layer(x, context), layer(50.0 * x, context), rtol=1e-4, atol=1e-5)


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused():
    with pytest.raises(ValueError, match="num_heads=5 does not divide width=32"):
        SelfAttention(width=32, num_heads=5)
