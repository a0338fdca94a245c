import torch

from ldm.nn.layers import grid_positions, sinusoidal


def test_sinusoids_turn_by_a_fixed_rotation_per_step():
    """Features at p + 1 are a rotation of those at p that does not depend on p: relative positions are linear."""
    features = sinusoidal(torch.arange(6), 8, max_period=100.0)
    cos, sin = features.chunk(2, dim=-1)
    phase = torch.complex(cos, sin)
    steps = phase[1:] / phase[:-1]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_grid_positions_are_distinct_and_centred():
    device = torch.device("cpu")
    small, large = grid_positions(4, 4, 32, device=device), grid_positions(4, 8, 32, device=device)
    assert torch.cdist(large, large).add(torch.eye(32)).min() > 0.1
    middle = large.unflatten(0, (4, 8))[:, 2:6].flatten(0, 1)
    torch.testing.assert_close(middle, small)
