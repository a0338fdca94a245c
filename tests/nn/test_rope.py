import pytest
import torch

from ldm.nn.rope import image_positions, rotate, rotations


def test_products_of_turned_vectors_depend_on_differences_of_positions_only():
    positions = image_positions(4, 5, device=torch.device("cpu"))
    q, k = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

    def products(moved):
        rotation = rotations(moved, (4, 8)).double()
        return rotate(q.expand(len(moved), -1), rotation) @ rotate(k.expand(len(moved), -1), rotation).T

    here, there = products(positions), products(positions + torch.tensor([30, -7]))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    assert here.std() > 0.1


def test_axes_turn_channels_of_their_own_and_lengths_stay():
    x = torch.randn(6, 8)
    by_row = rotate(x, rotations(torch.tensor([[i, 0] for i in range(6)]), (4, 4)))
    torch.testing.assert_close(by_row[:, 4:], x[:, 4:])
    torch.testing.assert_close(by_row.norm(dim=-1), x.norm(dim=-1))
    assert (by_row[1:, :4] - x[1:, :4]).abs().amax(-1).min() > 1e-3


def test_angles_are_as_written():
    """Pair i of an axis with n channels turns by p * theta^(-2i/n)."""
    rotation = rotations(torch.tensor([[3]]), (6,), theta=100.0)
    angles = torch.tensor([3.0, 3.0 * 100 ** (-2 / 6), 3.0 * 100 ** (-4 / 6)])
    torch.testing.assert_close(rotation[0], torch.stack([angles.cos(), angles.sin()], dim=-1))


def test_compiled_arithmetic_is_the_same(monkeypatch):
    x, rotation = (
        torch.randn(2, 3, 6, 8),
        rotations(image_positions(2, 3, device=torch.device("cpu")), (4, 4)),
    )
    eager = rotate(x, rotation)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rotation), eager)


def test_precision_of_the_input_stays():
    rotation = rotations(torch.tensor([[1]]), (4,))
    assert rotate(torch.randn(1, 4, dtype=torch.bfloat16), rotation).dtype == torch.bfloat16


@pytest.mark.parametrize("widths", [(4,), (3, 5)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="must be 2 even numbers"):
        rotations(torch.zeros(1, 2), widths)
