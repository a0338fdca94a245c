"""Against diffusers, an implementation that many models were trained with. Where the two differ, the test says why."""

from __future__ import annotations

import pytest
import torch

from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import ImprovedCosine, RectifiedFlow, log_snr
from ldm.diffusion.shifts import FixedShift, Shifted, TokenShift
from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear, Tabulated
from ldm.diffusion.time_samplers import CosMap, LogitNormal, ModeHeavyTails
from ldm.diffusion.weightings import MinSNR, Unweighted
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from ldm.interfaces import NoiseSchedule, Parameterization, TimeSampler
from tests.diffusion.parts import diffusion, sample, says

diffusers = pytest.importorskip("diffusers")

INDEX = torch.arange(1000)
KNOTS = (INDEX.double() + 1) / 1000  # where a table's entries stand
TABLES = [
    pytest.param(DDPMLinear(), {"beta_schedule": "linear"}, id="DDPMLinear"),
    pytest.param(
        ScaledLinear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        id="ScaledLinear",
    ),
]


@pytest.mark.parametrize(("schedule", "config"), TABLES)
def test_tables(schedule: Tabulated, config: dict[str, object]) -> None:
    """diffusers multiplies 1000 factors in float32, each rounded; ours are float64 and agree with float64 products.

    Its SNR is a quotient by 1 - alpha_bar, of which float32 leaves four digits at the first indices.
    """
    from diffusers.training_utils import compute_snr

    scheduler = diffusers.DDPMScheduler(**config)
    theirs = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.alpha(KNOTS) ** 2, theirs, rtol=1e-5, atol=0)
    in_float64 = torch.cumprod(1 - schedule.betas(), 0)
    torch.testing.assert_close(schedule.alpha(KNOTS) ** 2, in_float64, rtol=1e-12, atol=0)
    snr = torch.exp(log_snr(schedule, KNOTS))
    torch.testing.assert_close(snr, compute_snr(scheduler, INDEX).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("schedule", "config"), TABLES)
def test_noisy_latents_and_v_targets(schedule: Tabulated, config: dict[str, object]) -> None:
    scheduler = diffusers.DDPMScheduler(**config)
    x0, eps, _ = sample()
    index = torch.tensor([0, 1, 99, 250, 499, 500, 900, 999])
    t = (index + 1) / 1000
    it = diffusion(schedule, V(), t_range=(0.0, 1.0))
    torch.testing.assert_close(
        it.add_noise(x0, eps, t), scheduler.add_noise(x0, eps, index), rtol=1e-5, atol=1e-5
    )
    no_loss = it.loss(says(scheduler.get_velocity(x0, eps, index)), x0, says(eps), eps=eps, t=t)
    torch.testing.assert_close(no_loss, torch.zeros(8), rtol=0, atol=1e-9)


def test_improved_cosine_is_the_published_table_but_for_its_last_step() -> None:
    """diffusers' ``squaredcos_cap_v2`` is Nichol & Dhariwal's discrete form, its betas capped at 0.999.

    Their betas telescope, prod (1 - beta_i) = f(k / 1000) / f(0), so all entries before the cap are ours exactly, but
    for float32: near the end a beta is near 1, and 1 - beta has few digits. The last beta would be 1 and is capped:
    alpha_bar there is a thousandth of its neighbour's, and 0 here.
    """
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    ours = ImprovedCosine().alpha(KNOTS) ** 2
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=2e-4, atol=1e-7)
    assert ours[-1] == 0
    assert theirs[-1].sqrt().item() == pytest.approx(4.93e-5, rel=1e-2)


@pytest.mark.parametrize("base", [DDPMLinear(), ScaledLinear()], ids=lambda b: type(b).__name__)
def test_zero_terminal_snr_is_algorithm_1_but_for_the_point_left_alone(base: Tabulated) -> None:
    """diffusers' function is the paper's algorithm: sqrt(alpha_bar) at index 0 keeps its value a0.

    There the stretch is a0 / (a0 - last), here 1 / (1 - last) as it is t = 0 that keeps its value, so the two are in a
    constant ratio, which for Stable Diffusion's table is 0.99997.
    """
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(base.betas()), 0).sqrt()
    ours = ZeroTerminalSNR(schedule=base).alpha(KNOTS)
    a0, last = base.alpha(KNOTS[0]), base.alpha(KNOTS[-1])
    ratio = (1 / (1 - last)) / (a0 / (a0 - last))
    torch.testing.assert_close(ours, ratio * theirs, rtol=1e-9, atol=1e-12)
    assert abs(float(ratio) - 1) < 4e-5


def test_fixed_shift() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)  # sigmas of t = 1, 999/1000 ... 1/1000
    ours = Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0))
    torch.testing.assert_close(ours.sigma(KNOTS.flip(0).float()), scheduler.sigmas[:1000], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 64, 64), (16, 128, 128), (16, 48, 80)])
def test_token_shift_is_flux(shape: tuple[int, int, int]) -> None:
    """diffusers' ``time_shift`` at the mu of its Flux pipeline: the line through (256, 0.5) and (4096, 1.15)."""
    tokens = shape[1] * shape[2] / 4
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = tokens * slope + (0.5 - slope * 256)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = Shifted(schedule=RectifiedFlow(), shift=TokenShift()).for_latents(shape)
    torch.testing.assert_close(ours.sigma(KNOTS), scheduler.time_shift(mu, 1.0, KNOTS))


def ask(law: TimeSampler, u: torch.Tensor) -> torch.Tensor:
    return law(u, slots=range(len(u)), num_slots=len(u), schedule=RectifiedFlow())


def test_logit_normal_draws() -> None:
    """The same normal draws give the same times."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 500, logit_mean=0.5, logit_std=0.8, generator=torch.Generator().manual_seed(0)
    )
    normal = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    ours = ask(LogitNormal(mean=0.5, std=0.8), torch.special.ndtr(normal.double()))
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.29, -0.5, 0.0])
def test_mode_draws(scale: float) -> None:
    """The same uniform draws give the same times, if ours are counted from the other end: their map falls in u."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "mode", 500, mode_scale=scale, generator=torch.Generator().manual_seed(0)
    )
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ask(ModeHeavyTails(scale=scale), 1 - u), theirs, rtol=1e-5, atol=1e-6)


def test_the_cosmap_weight_is_the_density_of_the_cosmap_law() -> None:
    """diffusers draws uniform times and weights the loss by the density; ``CosMap`` draws by the density."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    t = ask(CosMap(), u)
    (slope,) = torch.autograd.grad(t.sum(), u)
    torch.testing.assert_close(1 / slope, compute_loss_weighting_for_sd3("cosmap", t.detach()))


def test_the_sigma_sqrt_weight_is_no_weight_on_flow() -> None:
    """diffusers' SD3 training turns the flow output into x0 and weights that error by 1 / sigma^2.

    On the rectified flow x0 = x_t - sigma * output, so this is the plain squared error of the output.
    """
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    x0, eps, t = sample()
    it = diffusion(RectifiedFlow(), Flow())
    output = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    x_t = it.add_noise(x0, eps, t)
    theirs = (x_t - t[:, None, None, None] * output - x0).square().mean((1, 2, 3))
    theirs = compute_loss_weighting_for_sd3("sigma_sqrt", t) * theirs
    torch.testing.assert_close(
        it.loss(says(output), x0, says(x0), eps=eps, t=t), theirs, rtol=1e-4, atol=1e-5
    )
    assert isinstance(it.weighting, Unweighted)


@pytest.mark.parametrize(
    ("parameterization", "divisor"), [(Epsilon(), 0), (V(), 1), (X0(), None)], ids=["Epsilon", "V", "X0"]
)
def test_min_snr_as_in_its_training_scripts(parameterization: Parameterization, divisor: int | None) -> None:
    """min(SNR, gamma), over SNR for eps, over SNR + 1 for v; on diffusers' own SNR, of four digits at small indices."""
    from diffusers.training_utils import compute_snr

    schedule: NoiseSchedule = ScaledLinear()
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    snr = compute_snr(scheduler, INDEX).double()
    theirs = snr.clamp(max=5) / (1 if divisor is None else snr + divisor)
    alpha, sigma = schedule.alpha(KNOTS), schedule.sigma(KNOTS)
    p, q = parameterization.target_coeffs(alpha, sigma)
    ours = MinSNR(gamma=5.0)(log_snr(schedule, KNOTS), (sigma / (alpha * q - sigma * p)) ** 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
