import pytest
import torch

from ldm.nn.positions import CentredSinCos, Rotary, SinCos

CPU = torch.device("cpu")


@pytest.mark.parametrize("positions", [CentredSinCos(), SinCos(base_size=4)])
def test_features_tell_every_place_of_any_grid_apart(positions):
    for height, width in [(4, 4), (3, 7)]:
        features = positions.features(height, width, 32, device=CPU)
        assert features.shape == (height * width, 32) and features.dtype == torch.float32
        assert torch.cdist(features, features).add(torch.eye(height * width)).min() > 0.05
        assert positions.rotations(height, width, 8, device=CPU) is None


def test_a_larger_grid_is_stretched_over_the_same_span():
    positions = SinCos(base_size=4)
    small = positions.features(4, 4, 32, device=CPU).unflatten(0, (4, 4))
    large = positions.features(8, 4, 32, device=CPU).unflatten(0, (8, 4))
    torch.testing.assert_close(large[::2], small)


def test_a_network_grown_to_twice_the_size_keeps_the_places_it_knew():
    known = SinCos(base_size=4).features(4, 4, 32, device=CPU).unflatten(0, (4, 4))
    grown = SinCos(base_size=8, scale=2.0).features(8, 8, 32, device=CPU).unflatten(0, (8, 8))
    torch.testing.assert_close(grown[::2, ::2], known)


def test_features_are_as_published():
    """The first half tells the column: sines, then cosines, of frequencies 10000^(-i/n)."""
    features = SinCos(base_size=4).features(2, 4, 8, device=CPU).unflatten(0, (2, 4))
    column = torch.tensor(3.0)
    expected = torch.stack([column.sin(), (column / 100).sin(), column.cos(), (column / 100).cos()])
    torch.testing.assert_close(features[1, 3, :4], expected)


def test_rotary_positions_add_nothing_and_turn_rows_and_columns():
    rotary = Rotary(theta=100.0)
    assert rotary.features(2, 3, 32, device=CPU) is None
    rotation = rotary.rotations(2, 3, 8, device=CPU)
    assert rotation.shape == (6, 4, 2)
    cos = rotation[..., 0].unflatten(0, (2, 3))
    assert torch.equal(cos[0, :, :2], torch.ones(3, 2)) and torch.equal(cos[:, 0, 2:], torch.ones(2, 2))


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        Rotary().rotations(2, 2, 6, device=CPU)
    with pytest.raises(ValueError, match="base_size=0"):
        SinCos(base_size=0)
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        SinCos(base_size=4).features(2, 2, 6, device=CPU)
