"""PSNR, SSIM and LPIPS against other people's implementations, on the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.models import alexnet

from ldm.evaluation.quality import psnr, ssim
from ldm.needs import MissingNeeds
from ldm.training.lpips import Lpips


def pictures(num: int, seed: int, side: int = 40) -> torch.Tensor:
    noise = torch.rand(num, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8)


def spoilt(images: torch.Tensor, seed: int = 5) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.float() + 20 * noise).clamp(0, 255).to(torch.uint8)


def test_psnr_and_ssim_are_scikit_images() -> None:
    a = pictures(3, 0)
    b = spoilt(a)
    for i in range(3):
        x, y = (image[i].permute(1, 2, 0).numpy() for image in (a, b))
        assert float(psnr(a, b)[i]) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), rel=1e-9)
        theirs = structural_similarity(
            x,
            y,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(ssim(a, b)[i]) == pytest.approx(theirs, abs=1e-9)


def test_equal_pictures() -> None:
    a = pictures(2, 1)
    assert torch.equal(psnr(a, a), torch.full((2,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))


def test_ssim_wants_pictures_as_large_as_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(pictures(1, 0, side=8), pictures(1, 1, side=8))


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def test_lpips_is_torchmetrics_with_the_same_weights(backbone: Path) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True)
    own = {f"features.{name}": x for name, x in torch.load(backbone).items()}
    layers = [layer for part in range(1, 6) for layer in getattr(theirs.net, f"slice{part}")]
    network = alexnet(weights=None)
    network.load_state_dict(torch.load(backbone))
    assert len(own) == 16
    for layer, mine in zip(layers, network.features, strict=False):
        layer.load_state_dict(mine.state_dict())
    a = pictures(3, 2, side=64)
    b = spoilt(a)
    found = Lpips(path=str(backbone)).open(torch.device("cpu"))
    with torch.no_grad():
        known = theirs.eval()(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    torch.testing.assert_close(found(a, b), known, rtol=1e-4, atol=1e-7)
    assert float(found(a, a).abs().max()) == 0


def test_lpips_without_weights_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingNeeds, match=r"alexnet-owt-7be5be79\.pth .* download https://"):
        Lpips().open(torch.device("cpu"))
    np.save(tmp_path / "x.npy", np.zeros(3))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold LPIPS's weights"):
        Lpips(path=str(tmp_path / "other.pth")).open(torch.device("cpu"))
