from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from ldm.diffusion.schedules import Cosine
from ldm.interfaces import Conditioning, NoiseSchedule, Sampler
from ldm.sampling.generate import Guide, to_uint8
from ldm.sampling.guidance import Autoguidance, ClassifierFree, Unguided
from ldm.sampling.guidance_projected import APG
from ldm.sampling.guidance_zero_star import CFGZeroStar
from ldm.sampling.modes import ImageToImage, Inpaint
from ldm.sampling.request import Blend, Request
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


def test_size_conditioning_is_the_pictures_own_size_and_the_same_without_a_prompt() -> None:
    told: list[torch.Tensor] = []

    class Watched(Network):
        def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
            assert cond.sizes is not None
            told.append(cond.sizes)
            return super().forward(x, t, cond)

    it = dataclasses.replace(generation(), network=Watched())
    it = dataclasses.replace(
        it, guide=Guide(diffusion=it.diffusion, network=it.network, text_encoder=it.text_encoder)
    )
    for guidance in (ClassifierFree(scale=3.0), Autoguidance(run="x", scale=2.0)):
        told.clear()
        asked = [
            Request(prompt="a", seed=0),
            Request(prompt="b", seed=0, original_size=(99, 70), crop=(5, 6)),
        ]
        dataclasses.replace(it, guidance=guidance).pictures(asked, latent_size=(4, 8), batch_size=2)
        expected = [[8, 16, 0, 0, 8, 16], [99, 70, 5, 6, 8, 16]]
        assert told and all(sizes.tolist() in (expected, expected * 2) for sizes in told)


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


# ------------------------------------------------------------------------------------------------- requests


REQUESTS = [
    Request(prompt="one", seed=0),
    Request(prompt="one", seed=0, negative="two"),
    Request(prompt="one", seed=0, blend=Blend(prompt="three", seed=0, fraction=0.5)),
    Request(prompt="one", seed=0, blend=Blend(prompt="one", seed=5, fraction=0.5)),
]


@pytest.mark.parametrize(
    "guidance",
    [ClassifierFree(scale=3.0), APG(scale=3.0), CFGZeroStar(scale=3.0)],
    ids=lambda g: type(g).__name__,
)
@pytest.mark.parametrize("scaled", [False, True])
def test_each_part_of_a_request_counts_and_each_picture_can_be_made_alone(
    guidance: ClassifierFree, scaled: bool
) -> None:
    it = dataclasses.replace(generation(DDIM(eta=0.5)), guidance=guidance)
    requests = list(REQUESTS)
    if scaled:
        requests = [dataclasses.replace(r, scale=1.0 + i) for i, r in enumerate(requests)]
    together = it.pictures(requests, latent_size=SIZE, batch_size=4)
    assert len({tuple(picture.flatten().tolist()) for picture in together}) == 4
    # row by row as it stood, in a batch of nothing else
    alone = [it.pictures([r] * 4, latent_size=SIZE, batch_size=4)[i] for i, r in enumerate(requests)]
    assert torch.equal(torch.stack(alone), together)


def test_a_scale_of_its_own_is_the_guidance_of_that_scale() -> None:
    it = generation()
    own = dataclasses.replace(it, guidance=ClassifierFree(scale=5.0))
    (a,) = it.pictures([Request(prompt="one", seed=0, scale=5.0)], latent_size=SIZE, batch_size=2)
    (b,) = own.pictures([Request(prompt="one", seed=0)], latent_size=SIZE, batch_size=2)
    assert torch.equal(a, b)


def test_blends_begin_and_end_at_their_pictures() -> None:
    it = generation()
    ends = it.pictures(
        [Request(prompt="one", seed=0), Request(prompt="two", seed=5)], latent_size=SIZE, batch_size=4
    )
    way = [
        Request(prompt="one", seed=0, blend=Blend(prompt="two", seed=5, fraction=fraction))
        for fraction in (0.0, 1.0)
    ]
    made = it.pictures(way, latent_size=SIZE, batch_size=4)
    assert torch.equal(made[0], ends[0])
    assert (made[1].int() - ends[1].int()).abs().max() <= 1


def test_an_empty_negative_prompt_is_the_null_condition_and_unguided_asks_for_none() -> None:
    it = generation()
    asked: list[list[str]] = []
    encoder = it.text_encoder

    def encode(captions: Sequence[str]):  # type: ignore[no-untyped-def]
        asked.append(list(captions))
        return encoder(captions)

    it = dataclasses.replace(it, text_encoder=encode)
    it.images(["one"], [0], latent_size=SIZE, batch_size=1)
    assert asked == [["one"], [""]]
    asked.clear()
    dataclasses.replace(it, guidance=Unguided()).images(["one"], [0], latent_size=SIZE, batch_size=1)
    assert asked == [["one"]]


def test_autoguidance_asks_the_weaker_model_with_its_own_encoder() -> None:
    it = dataclasses.replace(generation(), guidance=Autoguidance(scale=2.0, run="weak"))
    with pytest.raises(ValueError, match="was not loaded"):
        it.images(["one"], [0], latent_size=SIZE, batch_size=1)
    other = generation(seed=1)
    guide = Guide(diffusion=other.diffusion, network=other.network, text_encoder=other.text_encoder)
    guided = dataclasses.replace(it, guide=guide)
    itself = Guide(diffusion=it.diffusion, network=it.network, text_encoder=it.text_encoder)
    plain = dataclasses.replace(it, guidance=Unguided())
    pictures = [
        one.images(["one"], [0], latent_size=SIZE, batch_size=1)
        for one in (guided, dataclasses.replace(it, guide=itself), plain)
    ]
    assert not torch.equal(pictures[0], pictures[2])
    assert (pictures[1].int() - pictures[2].int()).abs().max() <= 1  # away from itself leads nowhere


@pytest.mark.parametrize("sampler", [Euler(), Heun(), DDIM(eta=1.0)], ids=str)
def test_edited_pictures_do_not_depend_on_the_batch_split(sampler: Sampler) -> None:
    it = generation(sampler)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    requests = [Request(prompt=prompt, seed=seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    for mode in (
        ImageToImage(image="", strength=0.5),
        Inpaint(image="", mask=""),
        Inpaint(image="", mask="", num_passes=2, stretch=2, strength=0.75),
    ):
        with torch.no_grad():
            route = mode.route(it.codec, {"image": image, "mask": mask})
        together = it.pictures(requests, latent_size=SIZE, batch_size=4, route=route)
        parts = [
            it.pictures(requests[i : i + 2], latent_size=SIZE, batch_size=4, route=route)
            for i in range(0, 7, 2)
        ]
        assert torch.equal(torch.cat(parts), together)


def test_what_is_pasted_is_the_picture_itself() -> None:
    it = generation()
    pixels = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    with torch.no_grad():
        route = Inpaint(image="", mask="").route(it.codec, {"image": pixels / 127.5 - 1, "mask": mask})
    (made,) = it.pictures([Request(prompt="one", seed=0)], latent_size=SIZE, batch_size=2, route=route)
    assert torch.equal(made[..., :8].long(), pixels[0, ..., :8])
    assert not torch.equal(made[..., 8:].long(), pixels[0, ..., 8:])


def test_steps_are_shown() -> None:
    seen: list[int] = []
    generation().pictures(
        REQUESTS, latent_size=SIZE, batch_size=4, on_step=lambda step, x, prediction: seen.append(step)
    )
    assert seen == [0, 1, 2, 3]
