"""A discriminator of patches: which parts of a picture look made (Isola et al. 2016, 1611.07004, section 3.2.2)."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """pictures (B, 3, h, w) -> logits (B, 1, about h / 2^num_halvings, ...), high where a patch looks real.

    Group norm stands where the paper has batch norm: a picture's logits then do not depend on the others of its batch,
    so real and made pictures can be shown in any order, and two processes compute what one does. The two layers without
    a stride have 3x3 kernels in place of 4x4, so that small pictures are not used up.

    Args:
        channels: Of the first layer; each halving doubles them, up to eight times.
        num_halvings: Strided convolutions. 3 see patches of 54x54 pixels, 2 of 26x26, 1 of 12x12.
        num_groups: Of every group norm.
    """

    def __init__(self, *, channels: int = 64, num_halvings: int = 3, num_groups: int = 16) -> None:
        super().__init__()
        if channels % num_groups or num_halvings < 1:
            raise ValueError(
                f"PatchDiscriminator: num_groups={num_groups} must divide channels={channels}, and "
                f"num_halvings={num_halvings} be 1 or more"
            )
        stages = [
            nn.Sequential(nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
        ]
        width = channels
        for number in range(1, num_halvings + 1):
            out = channels * min(2**number, 8)
            size, stride = (4, 2) if number < num_halvings else (3, 1)
            stages.append(
                nn.Sequential(
                    nn.Conv2d(width, out, size, stride=stride, padding=1, bias=False),
                    nn.GroupNorm(num_groups, out),
                    nn.LeakyReLU(0.2),
                )
            )
            width = out
        self.stages = nn.ModuleList(stages)
        self.logits = nn.Conv2d(width, 1, 3, padding=1)
        for module in self.modules():  # as in 1511.06434, section 3
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps after each stage, the finest first."""
        found: list[Tensor] = []
        h = images
        for stage in self.stages:
            h = stage(h)
            found.append(h)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images)[-1]).float()
