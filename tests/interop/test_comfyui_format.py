"""One file in a family's original layout; that the names are right is shown in test_compvis, test_sd3 and test_flux."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.diffusion.parameterizations import Epsilon, V
from ldm.diffusion.schedules import VPLinear
from ldm.interop.comfyui_format import ComfyUI, family_of, rescaled_autoencoder
from ldm.interop.latents import refolded
from ldm.nn.autoencoder import AutoencoderKL
from tests.interop import tiny
from tests.interop.witness import with_random_weights

KINDS = {name: tiny.KINDS[name] for name in tiny.KINDS if name not in ("PixArtAlphaPipeline", "DiTPipeline")}


@pytest.mark.parametrize("name", KINDS)
def test_network_is_written_with_its_prefix_and_read_again(name: str, tmp_path: Path) -> None:
    model, file = tiny.model(KINDS[name]), tmp_path / "model.safetensors"
    notes = ComfyUI().write(model, file)
    assert ComfyUI().check(model, file, None) == [
        "what was written, read again, equals the run's weights bit for bit"
    ]
    tensors = load_file(file)
    count = sum(x.numel() for x in model.network.state_dict().values())
    assert sum(x.numel() for key, x in tensors.items() if key.startswith("model.diffusion_model.")) == count
    assert any("will not recognise this network" in note for note in notes)
    assert any("the autoencoder is left out" in note for note in notes)


def test_the_check_notices_another_value(tmp_path: Path) -> None:
    model, file = tiny.model(KINDS["FluxPipeline"]), tmp_path / "model.safetensors"
    ComfyUI().write(model, file)
    tensors = load_file(file)
    tensors["model.diffusion_model.img_in.bias"][0] += 1e-6
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"other values than the run in patch_in\.bias"):
        ComfyUI().check(model, file, None)


def test_what_comfyui_assumes_otherwise_is_noted(tmp_path: Path) -> None:
    def notes(kind: tiny.Kind, name: str) -> str:
        return "\n".join(ComfyUI().write(tiny.model(kind), tmp_path / f"{name}.safetensors"))

    assert "shift 1: set it by the node" in notes(KINDS["StableDiffusion3Pipeline"], "sd3")
    linear = notes(tiny.Kind(tiny.unet, VPLinear(), V()), "unet")
    assert "betas scaled_linear 0.00085 to 0.012, not of their own table" in linear
    assert "predicts v_prediction: set it by the node ModelSamplingDiscrete" in linear
    notes(KINDS["StableDiffusionXLPipeline"], "sdxl")
    assert "v_pred" in load_file(tmp_path / "sdxl.safetensors")
    assert "v_pred" not in load_file(tmp_path / "unet.safetensors")


def test_what_has_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no single-file layout for a DiT that ComfyUI reads"):
        ComfyUI().write(tiny.model(tiny.KINDS["DiTPipeline"]), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"give out=<name>\.safetensors"):
        ComfyUI().write(tiny.model(KINDS["FluxPipeline"]), tmp_path / "folder")
    masked = tiny.Kind(lambda: tiny.unet(context_mask=True), VPLinear(), Epsilon())
    with pytest.raises(ValueError, match="context_mask=true"):
        ComfyUI().write(tiny.model(masked), tmp_path / "x.safetensors")


@pytest.mark.parametrize("quant_convs", [True, False])
def test_folding_changes_latents_and_no_pictures(quant_convs: bool) -> None:
    network = AutoencoderKL(
        latent_channels=4, channels=[8, 16], blocks_per_level=1, num_groups=4, quant_convs=quant_convs
    )
    with_random_weights(network)
    factor, offset = [0.5, 2.0, 1.5, 1.0], [0.1, -0.3, 0.0, 0.7]
    folded = refolded(network, factor=factor, offset=offset)
    images, z = torch.rand(1, 3, 8, 8) * 2 - 1, torch.randn(1, 4, 4, 4)
    f, o = (torch.tensor(values)[:, None, None] for values in (factor, offset))
    with torch.no_grad():
        torch.testing.assert_close(folded.decode(f * z + o), network.decode(z), rtol=1e-5, atol=1e-5)
        mean, log_var = network.encode(images).chunk(2, dim=1)
        expected = torch.cat([f * mean + o, log_var + 2 * f.log()], dim=1)
        torch.testing.assert_close(folded.encode(images), expected, rtol=1e-5, atol=1e-5)


def test_a_published_autoencoder_keeps_its_weights_and_another_is_rescaled() -> None:
    with torch.device("meta"):
        shape = AutoencoderKL(latent_channels=4, channels=[128, 256, 512, 512], quant_convs=True)
    published = shape.to_empty(device="cpu")
    for parameter in published.parameters():
        parameter.data.fill_(0.01)
    family = family_of(tiny.unet())
    as_stated = tiny.model(
        KINDS["StableDiffusionPipeline"], autoencoder=published, mean=(0.0,) * 4, std=(1 / 0.18215,) * 4
    )
    assert rescaled_autoencoder(as_stated, family) is published
    other = tiny.model(KINDS["StableDiffusionPipeline"], autoencoder=published)
    rescaled = rescaled_autoencoder(other, family)
    assert rescaled is not None and rescaled is not published
    # what they scale is what the run calls normalised: (z' - shift) * factor = (z - mean) / std
    assert float(rescaled.post_quant_conv.weight.detach()[0, 0, 0, 0]) == pytest.approx(
        0.01 * other.std[0] * 0.18215
    )
