"""Pretrained networks of other projects as feature networks: CLIP by open_clip, DINOv2 by timm.

Weights come from a path or from the caches that these projects use themselves; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.features import Codecs, Features, content_hash
from ldm.evaluation.resize import CleanBicubic
from ldm.needs import Need, package, refuse_unmet

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A CLIP's picture side, embeddings of unit length.

    Args:
        model: open_clip's name of it; OpenAI's own weights need the names that end in "-quickgelu".
        size: The side of the pictures that it takes.
        path: Its weights in open_clip's names; None looks in the caches of Hugging Face and open_clip for ``tag``.
        tag: open_clip's name of the weights.
    """

    model: str = "ViT-L-14-336-quickgelu"
    size: int = 336
    path: str | None = None
    tag: str = "openai"
    label: str = "clip"

    @property
    def title(self) -> str:
        return f"CLIP {self.model}" + ("" if self.path else f" {self.tag}")

    @property
    def resizing(self) -> str:
        return str(CleanBicubic(size=self.size))

    def needs(self) -> list[Need]:
        library = package("open_clip_torch", extra="text")
        if not library.is_met:
            return [library]
        if self.path is not None:
            places, fetch = [Path(self.path)], ""
        else:
            places, fetch = _clip_places(self.model, self.tag)
        found = next((str(place) for place in places if place.is_file()), None)
        return [
            library,
            Need(
                what=f"the weights of {self.title}",
                found=found,
                looked_in=tuple(map(str, places)) or ("the caches of Hugging Face and open_clip",),
                bring=f"{fetch}copy the file here and give {{key}}path=<file>",
            ),
        ]

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        needs = self.needs()
        refuse_unmet(needs)
        import open_clip

        path = Path(str(needs[-1].found))
        try:
            network: Any = open_clip.create_model(self.model, pretrained=str(path), device=device)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path} does not hold the weights of {self.model} ({first})") from error
        network.eval().requires_grad_(False)
        tokens = open_clip.get_tokenizer(self.model)
        resize = CleanBicubic(size=self.size)

        def pictures(images: Tensor) -> Tensor:
            x = normalised(resize(images.to(device)), CLIP_MEAN, CLIP_STD)
            return F.normalize(network.encode_image(x).float(), dim=1).cpu()

        def texts(captions: Sequence[str]) -> Tensor:
            with torch.no_grad():
                return F.normalize(
                    network.encode_text(tokens(list(captions)).to(device)).float(), dim=1
                ).cpu()

        return Features(content_hash(path), self.resizing, pictures, texts)


@dataclass(frozen=True, kw_only=True)
class Timm:
    """A network of timm's, the vector before its classifier: DINOv2's class token for FD-DINOv2 (2306.04675).

    Args:
        model: timm's name of it.
        size: The side of the pictures, for which positions are resampled where the model was trained at another.
        path: Its weights in timm's names; None looks in Hugging Face's cache.
        label: What scores are called by.
    """

    model: str = "vit_large_patch14_dinov2.lvd142m"
    size: int = 224
    path: str | None = None
    label: str = "dinov2"

    @property
    def title(self) -> str:
        return f"timm's {self.model}"

    @property
    def resizing(self) -> str:
        return str(CleanBicubic(size=self.size))

    def needs(self) -> list[Need]:
        library = package("timm", extra="evaluation")
        if not library.is_met:
            return [library]
        repo, cached = f"timm/{self.model}", None
        if self.path is not None:
            cached = self.path if Path(self.path).is_file() else None
        else:
            from huggingface_hub import try_to_load_from_cache

            place = try_to_load_from_cache(repo, "model.safetensors")
            cached = place if isinstance(place, str) else None
        return [
            library,
            Need(
                what=f"the weights of {self.title}",
                found=cached,
                looked_in=(self.path or f"{repo} in Hugging Face's cache",),
                bring=f"where there is internet: hf download {repo} model.safetensors --local-dir {self.label}, then "
                f"copy the file here and give {{key}}path=<file>",
            ),
        ]

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        needs = self.needs()
        refuse_unmet(needs)
        import timm

        path = Path(str(needs[-1].found))
        options: dict[str, Any] = {"img_size": self.size} if self.model.startswith("vit_") else {}
        try:
            network = timm.create_model(
                self.model,
                pretrained=True,
                num_classes=0,
                pretrained_cfg_overlay={"file": str(path)},
                **options,
            )
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path} does not hold the weights of {self.model} ({first})") from error
        network.to(device).eval().requires_grad_(False)
        resize = CleanBicubic(size=self.size)

        def run(images: Tensor) -> Tensor:
            x = normalised(resize(images.to(device)), IMAGENET_MEAN, IMAGENET_STD)
            return network(x).float().cpu()

        return Features(content_hash(path), self.resizing, run)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> each colour, in [0, 1], less its mean over its standard deviation."""
    centre, width = (images.new_tensor(x).view(3, 1, 1) for x in (mean, std))
    return (images / 255 - centre) / width


def _clip_places(model: str, tag: str) -> tuple[list[Path], str]:
    """Where weights with this tag would be, and what brings them."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.pretrained import get_pretrained_cfg

    known = get_pretrained_cfg(model, tag)
    repo = str(known.get("hf_hub", "")).rstrip("/")
    places = []
    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin") if repo else ():
        place = try_to_load_from_cache(repo, file)
        places += [Path(place)] if isinstance(place, str) else []
    if url := known.get("url"):
        places.append(Path("~/.cache/clip").expanduser() / url.rpartition("/")[2])
    fetch = f"where there is internet: hf download {repo} open_clip_model.safetensors --local-dir clip, then "
    return places, fetch if repo else ""
