"""LPIPS against the paper's own package and torchvision's classifiers, all with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from ldm.needs import MissingNeeds
from ldm.nn.perceptual import LPIPS, Backbone, alexnet, vgg16
from ldm.training.perceptual_terms import PerceptualDistance

NETWORKS = {"vgg": (vgg16, torchvision.models.vgg16), "alex": (alexnet, torchvision.models.alexnet)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_backbone_gives_what_torchvisions_does(name: str) -> None:
    ours, theirs = NETWORKS[name]
    torch.manual_seed(0)
    reference, backbone = theirs(weights=None).features.eval(), ours()
    backbone.load({f"features.{key}": x for key, x in reference.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    h = (x - backbone.shift) / backbone.scale
    expected = [h := layer(h.clone()) for layer in reference]
    found = backbone(x)
    assert [f.shape[1] for f in found] == backbone.widths
    for tap, y in zip(sorted(backbone.taps), found, strict=True):
        torch.testing.assert_close(y, expected[tap])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_distance_is_the_papers(name: str) -> None:
    lpips = pytest.importorskip("lpips", reason="the paper's package is the reference: pip install lpips")
    torch.manual_seed(0)
    reference = lpips.LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
    for head in reference.lins:
        torch.nn.init.uniform_(head.model[1].weight)
    ours = LPIPS(NETWORKS[name][0]())
    state = reference.state_dict()
    slices = {k.split(".", 2)[2]: x for k, x in state.items() if k.startswith("net.slice")}
    ours.backbone.load({f"features.{key}": x for key, x in slices.items()})
    ours.load_heads({key: x for key, x in state.items() if key.startswith("lin")})
    a = torch.rand(3, 3, 64, 64) * 2 - 1
    b = (a + 0.3 * torch.randn_like(a)).requires_grad_()
    expected = reference(a, b).flatten()
    (expected_slope,) = torch.autograd.grad(expected.sum(), b)
    found = ours(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), b)
    torch.testing.assert_close(
        slope, expected_slope, rtol=1e-3, atol=1e-3 * float(expected_slope.abs().max())
    )


def written(folder: Path, backbone: Backbone) -> tuple[str, str]:
    """Files such as the published ones."""
    state = {f"features.{k.removeprefix('layers.')}": x for k, x in backbone.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, folder / "classifier.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(backbone.widths)}
    torch.save(heads, folder / "heads.pth")
    return str(folder / "classifier.pth"), str(folder / "heads.pth")


def test_the_files_are_read_and_wrong_ones_are_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = alexnet()
    classifier, heads = written(tmp_path, backbone)
    term = PerceptualDistance(classifier=classifier, heads=heads)
    torch.testing.assert_close(term.lpips.backbone.state_dict(), backbone.state_dict())
    assert not any(x.requires_grad for x in term.parameters()) and not term.train().training

    torch.save({"lin0.model.1.weight": torch.ones(1, 9, 1, 1)}, heads)
    with pytest.raises(ValueError, match=r"heads.pth, with .*not LPIPS's weights for this classifier: lin0"):
        PerceptualDistance(classifier=classifier, heads=heads)
    torch.save({"features.0.weight": torch.ones(1)}, classifier)
    with pytest.raises(ValueError, match=r"classifier.pth: these are not torchvision's weights"):
        PerceptualDistance(classifier=classifier, heads=heads)
    with pytest.raises(
        MissingNeeds, match=r"LPIPS's channel weights nowhere.pth is missing; the package lpips"
    ):
        PerceptualDistance(classifier=classifier, heads="nowhere.pth")
    with pytest.raises(MissingNeeds, match=r"the classifier nowhere.pth is missing; .*vgg16-397923af.pth"):
        PerceptualDistance(classifier="nowhere.pth", heads=heads)


def test_equal_pictures_are_at_no_distance_and_have_a_gradient_that_is_finite() -> None:
    torch.manual_seed(0)
    lpips = LPIPS(alexnet())
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance = lpips(x.detach(), x)
    distance.sum().backward()
    assert float(distance) == 0.0 and x.grad is not None and bool(torch.isfinite(x.grad).all())
