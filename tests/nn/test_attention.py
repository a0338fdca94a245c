import pytest
import torch

from ldm.nn.attention import SDPA, CrossAttention, MathAttention, SelfAttention


def random_qkv(n=5, m=7):
    q, k, v = (torch.randn(2, 3, length, 8) for length in (n, m, m))
    return q, k, v


@pytest.mark.parametrize("masked", [False, True])
def test_kernels_agree_with_the_written_formula(masked):
    q, k, v = random_qkv()
    mask = None
    if masked:
        mask = torch.rand(2, 7) > 0.5
        mask[:, 0] = True
    torch.testing.assert_close(SDPA()(q, k, v, mask), MathAttention()(q, k, v, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [SDPA(), MathAttention()])
def test_masked_keys_have_no_influence(kernel):
    q, k, v = random_qkv()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 4:], changed_v[:, :, 4:] = 100.0, -100.0
    torch.testing.assert_close(kernel(q, k, v, mask), kernel(q, changed_k, changed_v, mask))


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
