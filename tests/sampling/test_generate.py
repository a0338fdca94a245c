from __future__ import annotations

import pytest
import torch

from ldm.diffusion.schedules import Cosine
from ldm.interfaces import NoiseSchedule, Sampler
from ldm.sampling.generate import to_uint8
from ldm.sampling.samplers import DDIM, Euler, Heun
from tests.sampling.tiny import Network, generation

PROMPTS = [f"picture number {i}" for i in range(7)]
SEEDS = [10, 11, 12, 10, 99, 98, 97]
SIZE = (8, 8)


def test_shape_type_and_progress() -> None:
    done: list[int] = []
    pictures = generation().images(PROMPTS, SEEDS, latent_size=(6, 8), batch_size=3, on_batch=done.append)
    assert pictures.shape == (7, 3, 12, 16)
    assert pictures.dtype == torch.uint8
    assert done == [3, 6, 7]
    assert pictures.float().std() > 5  # something is to be seen


@pytest.mark.parametrize("schedule", [None, Cosine()], ids=["RectifiedFlow", "Cosine"])
@pytest.mark.parametrize("sampler", [Euler(), Heun(), DDIM(eta=1.0)], ids=str)
def test_the_same_seed_gives_the_same_picture_whatever_the_batch_split(
    sampler: Sampler, schedule: NoiseSchedule | None
) -> None:
    it = generation(sampler, schedule)
    together = it.images(PROMPTS, SEEDS, latent_size=SIZE, batch_size=4)
    for split in ([1] * 7, [3, 4], [6, 1]):
        parts = [
            it.images([PROMPTS[i] for i in rows], [SEEDS[i] for i in rows], latent_size=SIZE, batch_size=4)
            for rows in torch.arange(7).split(split)
        ]
        assert torch.equal(torch.cat(parts), together), split


def test_order_does_not_matter() -> None:
    it = generation()
    forwards = it.images(PROMPTS, SEEDS, latent_size=SIZE, batch_size=4)
    backwards = it.images(PROMPTS[::-1], SEEDS[::-1], latent_size=SIZE, batch_size=4)
    assert torch.equal(backwards.flip(0), forwards)


def test_another_batch_size_is_the_same_picture_to_the_eye() -> None:
    it = generation()
    some, others = (it.images(PROMPTS, SEEDS, latent_size=SIZE, batch_size=size) for size in (2, 5))
    assert (some.int() - others.int()).abs().max() <= 1


def test_prompt_and_seed_both_count() -> None:
    it = generation()
    a, b, c = it.images(["one", "two", "one"], [0, 0, 1], latent_size=SIZE, batch_size=4)
    assert not torch.equal(a, b) and not torch.equal(a, c)


def test_modules_are_left_in_the_mode_they_were_in_and_without_gradients() -> None:
    it = generation()
    assert isinstance(it.network, Network)
    it.network.train()
    it.network.attention.eval()
    first = it.images(PROMPTS[:1], [0], latent_size=SIZE, batch_size=1)
    again = it.images(PROMPTS[:1], [0], latent_size=SIZE, batch_size=1)
    assert torch.equal(first, again)  # the dropout was off
    assert it.network.mlp.training and not it.network.attention.training
    assert all(parameter.grad is None for parameter in it.network.parameters())


def test_the_global_random_state_is_neither_used_nor_moved() -> None:
    it = generation(DDIM(eta=1.0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = it.images(PROMPTS[:2], [0, 1], latent_size=SIZE, batch_size=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(it.images(PROMPTS[:2], [0, 1], latent_size=SIZE, batch_size=2), first)


@pytest.mark.parametrize(
    ("prompts", "seeds", "size", "batch_size"),
    [([], [], SIZE, 1), (["a"], [0, 1], SIZE, 1), (["a"], [0], SIZE, 0), (["a"], [0], (0, 8), 1)],
)
def test_impossible_requests_are_refused(
    prompts: list[str], seeds: list[int], size: tuple[int, int], batch_size: int
) -> None:
    with pytest.raises(ValueError):
        generation().images(prompts, seeds, latent_size=size, batch_size=batch_size)


def test_to_uint8_covers_the_range_and_clips() -> None:
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]
