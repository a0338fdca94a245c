"""Memorization and leakage as a metric: which samples copy training pictures, and how alike the data are themselves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.distribution import NO_PICTURES
from ldm.evaluation.features import FeatureNetwork, Pixels, within
from ldm.evaluation.intervals import wilson
from ldm.evaluation.looking import Pictures
from ldm.evaluation.memorization import (
    Copies,
    Cuts,
    SeenInCuts,
    SeenMirrored,
    Small,
    find_copies,
    nearest,
)
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.subject import Look, Measured, Prompt, Samples, Subject
from ldm.needs import Need
from ldm.randomness import address
from ldm.training.figures import new_figure, save
from ldm.training.grids import labelled_grid

NUM_SHOWN = 24  # pairs in the picture
SMALL = Small()
SETS = {"copies": "samples", "val_copies": "validation pictures", "train_duplicates": "training pictures"}


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """The share of samples that copy a training picture; beside it that of validation pictures that do (which no model
    can be blamed for: leakage, or data that are all alike) and of training pictures that have a duplicate.

    Leaves memorization.csv (the best pair of each picture), memorization.png (histograms of likeness) and
    memorization_pairs.png (the most alike pairs, each over its training picture).

    Args:
        features: The space in which candidates are found.
        cuts: Cuts of training pictures that a copy may show.
        num_samples: Pictures made, for each seed, of captions of the training set.
        num_controls: Validation and training pictures that are compared as well, at most.
        num_training: Training pictures that are compared with; None for all.
        nearest: Candidates for each picture.
        likeness: A copy's pixels correlate at least so much with what it copies.
        contrast: What is left unlike is at most this share of what the other candidates leave.
    """

    features: FeatureNetwork = field(default_factory=lambda: Pixels(size=8))
    cuts: Cuts = field(default_factory=Cuts)
    num_samples: int = 2000
    num_controls: int = 1000
    num_training: int | None = None
    nearest: int = 8
    likeness: float = 0.95
    contrast: float = 0.5

    def needs(self) -> Sequence[Need]:
        return within("features", self.features.needs())

    def unfit(self, subject: Subject) -> str:
        return "" if subject.makes_pictures else NO_PICTURES

    def protocols(self, subject: Subject) -> list[Protocol]:
        training = self._training(subject)
        return [
            subject.passport(
                f"memorization/{name}",
                samples=name == "copies",
                reference=training.title,
                reference_hash=training.content_hash,
                prompts_hash=self._samples(subject, subject.seeds[0]).prompts_hash
                if name == "copies"
                else "",
                num_images=sum(sets[0].sizes),
                resize=SeenInCuts(features=self.features, cuts=self.cuts).resizing,
                features=self.features.title,
                features_hash=subject.opened(self.features).content_hash,
                details={"nearest": self.nearest, "likeness": self.likeness, "contrast": self.contrast},
            )
            for name, sets in self._sets(subject).items()
        ]

    def looks(self, subject: Subject) -> list[Look]:
        seen, cuts = SeenMirrored(features=self.features), SeenInCuts(features=self.features, cuts=self.cuts)
        found = [Look(self._training(subject), network) for network in (cuts, SMALL)]
        for sets in self._sets(subject).values():
            found += [Look(pictures, network) for pictures in sets for network in (seen, SMALL)]
        return found

    def measure(self, subject: Subject) -> list[Measured]:
        training = self._training(subject)
        sets = self._sets(subject)
        found = {name: self._found(subject, name, some, training) for name, some in sets.items()}
        if subject.together.is_main:
            subject.folder.mkdir(parents=True, exist_ok=True)
            write_pairs(subject.folder / "memorization.csv", found, sets, training)
            draw_likeness(subject.folder / "memorization.png", found, title=subject.title)
            sheet = worst_pairs(found["copies"], sets["copies"], training, title=subject.title)
            sheet.save(subject.folder / "memorization_pairs.png")
        return [
            self._measured(protocol, found[protocol.metric.partition("/")[2]])
            for protocol in self.protocols(subject)
        ]

    def _measured(self, protocol: Protocol, found: Copies) -> Measured:
        right, num = int(found.is_copy.sum()), len(found.is_copy)
        low, high = wilson(right, num)
        quantiles = torch.quantile(found.likeness.double(), torch.tensor([0.05, 0.5, 0.95, 1.0]).double())
        return Measured(
            protocol=protocol,
            value=right / num,
            num=num,
            low=low,
            high=high,
            interval="Wilson's, over pictures",
            extra={"likeness": dict(zip(("5 %", "median", "95 %", "most"), quantiles.tolist(), strict=True))},
        )

    def _training(self, subject: Subject) -> Pictures:
        return subject.reference("train", self.num_training)

    def _samples(self, subject: Subject, seed: int) -> Samples:
        captions = subject.captions("train", self.num_samples)
        return subject.samples(
            [Prompt(text, address(seed, "evaluation noise", i)) for i, text in enumerate(captions)]
        )

    def _sets(self, subject: Subject) -> dict[str, list[Pictures]]:
        """What is compared with the training set, by the names of scores."""
        found: dict[str, list[Pictures]] = {
            "copies": [self._samples(subject, seed) for seed in subject.seeds],
            "train_duplicates": [subject.reference("train", self.num_controls)],
        }
        with suppress(ValueError):  # the run has no validation set
            found["val_copies"] = [subject.reference("val", self.num_controls)]
        return found

    def _found(self, subject: Subject, name: str, sets: Sequence[Pictures], training: Pictures) -> Copies:
        seen, cuts = SeenMirrored(features=self.features), SeenInCuts(features=self.features, cuts=self.cuts)
        theirs = subject.features(training, cuts)  # (M, V, D)
        mine = torch.cat([subject.features(one, seen) for one in sets])  # (N, 2, D)
        own = None
        if name == "train_duplicates":
            places = {key: row for row, key in enumerate(training.keys)}
            own = torch.tensor([places.get(key, -1) for one in sets for key in one.keys]).to(subject.device)
        among = nearest(mine.to(subject.device), theirs.to(subject.device), num=self.nearest, own=own)
        return find_copies(
            torch.cat([subject.features(one, SMALL) for one in sets]),
            subject.features(training, SMALL),
            among.cpu(),
            self.cuts,
            likeness=self.likeness,
            contrast=self.contrast,
        )


# ----------------------------------------------------------------------------------------------------- what is left


def write_pairs(
    path: Path, found: dict[str, Copies], sets: dict[str, list[Pictures]], training: Pictures
) -> None:
    """A line for each picture and the training picture that it fits best."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["set", "picture", "training picture", "likeness", "others", "is copy", "mirrored", "scale"]
        )
        for name, copies in found.items():
            for i, key in enumerate(key for one in sets[name] for key in one.keys):
                row, box = int(copies.row[i]), copies.box[i]
                numbers = [f"{float(copies.likeness[i]):.4f}", f"{float(copies.others[i]):.4f}"]
                verdicts = [bool(copies.is_copy[i]), bool(copies.mirrored[i])]
                writer.writerow(
                    [SETS[name], key, training.keys[row], *numbers, *verdicts, f"{float(box[0]):.3f}"]
                )


def draw_likeness(path: Path, found: dict[str, Copies], *, title: str) -> Path:
    """How alike the best pairs are, of samples against those of the data themselves."""
    figure, plot = new_figure()
    colours = {"copies": "#cc4c02", "val_copies": "#3465a4", "train_duplicates": "#888888"}
    for name, copies in found.items():
        plot.hist(
            copies.likeness.numpy(),
            bins=60,
            range=(min(0.0, float(copies.likeness.min())), 1.0),
            density=True,
            histtype="step",
            lw=1.6,
            color=colours[name],
            label=f"{SETS[name]}: {int(copies.is_copy.sum())} of {len(copies.is_copy):,} copy",
        )
    plot.set_xlabel("correlation with the nearest training picture, laid over it at its best")
    plot.set_title(title, fontsize=9)
    plot.legend(frameon=False, fontsize=9, loc="upper left")
    return save(figure, path)


def worst_pairs(found: Copies, sets: Sequence[Pictures], training: Pictures, *, title: str) -> Image.Image:
    """The pairs that are most alike, copies first: each picture over its training picture."""
    order = (found.likeness + found.is_copy).argsort(descending=True)[:NUM_SHOWN].tolist()
    ends = torch.tensor([len(one.keys) for one in sets]).cumsum(0).tolist()
    pairs, labels = [], []
    for i in order:
        which = next(k for k, end in enumerate(ends) if i < end)
        own = picture_at(sets[which], i - (ends[which - 1] if which else 0))
        other = picture_at(training, int(found.row[i]))
        if found.mirrored[i]:
            other = other.flip(-1)
        other = F.interpolate(other[None].float(), own.shape[-2:], mode="area")[0].round().to(torch.uint8)
        pairs.append(torch.cat([own, other], dim=1))  # (3, 2H, W)
        kind = "copy" if found.is_copy[i] else "no copy"
        mirrored = ", mirrored" if found.mirrored[i] else ""
        labels.append(f"{kind}: {float(found.likeness[i]):.3f}, cut {float(found.box[i, 0]):.2f}{mirrored}")
    head = f"samples over the training pictures they are most like: {title}"
    return labelled_grid(torch.stack(pairs), labels, columns=8, title=head)


def picture_at(pictures: Pictures, row: int) -> Tensor:
    """One picture of a set, (3, H, W) uint8."""
    for number, size in enumerate(pictures.sizes):
        if row < size:
            return next(iter(pictures.batches([number])))[row]
        row -= size
    raise IndexError(f"picture {row} beyond the end")
