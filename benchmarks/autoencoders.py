"""Autoencoders side by side on pictures that none was trained on: the table of docs/autoencoders.md.

    python benchmarks/autoencoders.py shapes_vae shapes_vae_gan shapes_vae_eq --shards data/shapes/val \\
        --features runs/features_vae/last/autoencoder.safetensors

For each the PSNR; the Frechet distance between originals and reconstructions on features of an autoencoder that was
trained on the same data and is none of those compared (not FID: comparable inside one table only); the error of turning
and shrinking with the latents; and what share of the latents' spectrum lies in its higher half.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from ldm.codecs.kl import KLCodec
from ldm.data.pipeline import ShardDataset, in_order
from ldm.training.autoencoder_module import psnr
from ldm.training.autoencoder_pass import Draw, run_means
from ldm.training.features import AutoencoderFeatures
from ldm.training.latent_terms import EquivarianceError
from ldm.training.run import find_run

COLUMNS = {
    "psnr": "PSNR, dB",
    "frechet": "Frechet distance",
    "equivariance_error": "equivariance error",
    "high_frequencies": "share of high frequencies",
    "num_images": "pictures",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="runs of autoencoders, or their names")
    parser.add_argument("--shards", default="data/shapes/val")
    parser.add_argument(
        "--features", required=True, help="autoencoder.safetensors of one that is not compared"
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--runs-folder", default="runs")
    parser.add_argument("--out", type=Path, help="a JSON file of the same numbers")
    given = parser.parse_args()
    features = AutoencoderFeatures(path=given.features)
    pictures = ShardDataset(shards=given.shards, image_size=given.image_size)
    found = {}
    for name in given.runs:
        path = find_run(name, runs=given.runs_folder).path / "autoencoder.safetensors"
        found[name] = measure(path, features, pictures, batch_size=given.batch_size)
    print("| autoencoder | " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for name, numbers in found.items():
        print(f"| {name} | " + " | ".join(f"{numbers[column]:.4g}" for column in COLUMNS) + " |")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def measure(
    path: Path, features: AutoencoderFeatures, pictures: ShardDataset, *, batch_size: int
) -> dict[str, float]:
    """All numbers of one autoencoder."""
    codec = KLCodec(path=str(path))
    error = EquivarianceError()
    ratios, errors, spectra, real, made = [], [], [], [], []
    for batch in in_order(pictures, batch_size=batch_size):
        assert batch.images is not None
        seen = run_means(codec.autoencoder, batch.images, Draw.of(batch, seed=0, step=0))
        ratios.append(psnr(seen.images, seen.reconstructions))
        errors.append(error(seen) * len(batch))
        spectra.append(high_frequencies(codec.latents(seen.moments, noise=None)) * len(batch))
        real.append(pooled(features, seen.images))
        made.append(pooled(features, seen.reconstructions))
    num = sum(map(len, ratios))
    return {
        "psnr": float(torch.cat(ratios).mean()),
        "frechet": frechet(torch.cat(real), torch.cat(made)),
        "equivariance_error": float(torch.stack(errors).sum() / num),
        "high_frequencies": float(torch.stack(spectra).sum() / num),
        "num_images": num,
    }


def pooled(features: AutoencoderFeatures, images: Tensor) -> Tensor:
    """images (B, 3, h, w) -> (B, c), float64: means over positions of the coarsest map."""
    return features(images)[-1].double().mean(dim=(2, 3))


def frechet(a: Tensor, b: Tensor) -> float:
    """Between normal laws with the means and covariances of rows a (N, c) and b (N, c) (Dowson & Landau 1982)."""
    first, second = torch.cov(a.T), torch.cov(b.T)
    # The trace of the root of a product of two covariances is the sum of the roots of the product's eigenvalues.
    cross = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    between = (a.mean(0) - b.mean(0)).square().sum()
    return float(between + first.trace() + second.trace() - 2 * cross)


def high_frequencies(latents: Tensor) -> Tensor:
    """latents (B, C, H, W) -> the share of their power, but for the mean, at half the highest frequency or more."""
    power = torch.fft.fft2(latents).abs().square()
    height, width = latents.shape[-2:]
    down, across = torch.fft.fftfreq(height).abs()[:, None], torch.fft.fftfreq(width).abs()[None, :]
    radius = torch.maximum(down, across)  # (H, W), at most 1/2
    share: Tensor = (power * (radius >= 0.25)).sum() / (power * (radius > 0)).sum()
    return share


if __name__ == "__main__":
    main()
