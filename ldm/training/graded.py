"""The exact grade of pictures of coloured shapes as a metric: its prompts, its table and its pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from torch import Tensor

from ldm.data.shapes import BACKGROUND, COLOURS, KINDS
from ldm.data.shapes_captions import Prompt, evaluation_prompts
from ldm.data.shapes_render import OUTLINES
from ldm.evaluation.composition import ASPECTS, Grade, grade, tally
from ldm.evaluation.distribution import NO_PICTURES
from ldm.evaluation.features import Raw
from ldm.evaluation.intervals import wilson
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import PerSample, Score
from ldm.evaluation.subject import Look, Measured, Samples, Subject
from ldm.evaluation.subject import Prompt as ToMake
from ldm.evaluation.things import World
from ldm.needs import Need
from ldm.randomness import address
from ldm.training.grids import labelled_grid

WORLD = World(BACKGROUND, COLOURS, OUTLINES)
GROUPS = {"seen": True, "never seen": False}
NUM_SHOWN = 16  # right ones and wrong ones each, in the picture
WHOLE = "composition/seen/all_right"  # the score whose record holds the whole report
RAW = Raw()

Report = dict[str, dict[str, dict[str, float]]]
"""Group of prompts -> aspect -> right, asked, share, low, high (95 % interval)."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Colour, shape, count, relation, all right: of combinations as in training, and of such as never occur there.

    Half of the prompts ask for the ones, half for the others. Leaves composition.json (the table and how it was made),
    composition.csv (a line per picture) and composition.png.

    Args:
        num_prompts: Pictures made and graded, for each seed.

    Raises:
        ValueError: No prompts.
    """

    num_prompts: int = 500

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts={self.num_prompts} must be 1 or more")

    def needs(self) -> list[Need]:
        return []

    def unfit(self, subject: Subject) -> str:
        if not subject.makes_pictures:
            return NO_PICTURES
        try:
            said = subject.data.measured("train").index.read(0, "json")
        except (OSError, ValueError, AttributeError):
            return ""  # its data are not here: nothing speaks against it
        if b'"scene"' in (said or b""):
            return ""
        return "its data are no shapes, whose pictures alone can be read"

    def protocols(self, subject: Subject) -> list[Protocol]:
        prompts = self._prompts(subject)
        samples = self._samples(subject, subject.seeds[0])
        return [
            subject.passport(
                f"composition/{group.replace(' ', '_')}/{aspect}",
                samples=True,
                prompts_hash=samples.prompts_hash,
                num_images=self.num_prompts,
            )
            for group, seen in GROUPS.items()
            for aspect in ASPECTS
            if any(
                prompt.seen is seen and (aspect != "relation" or prompt.relation is not None)
                for prompt in prompts
            )
        ]

    def looks(self, subject: Subject) -> list[Look]:
        return [Look(self._samples(subject, seed), RAW) for seed in subject.seeds]

    def measure(self, subject: Subject) -> list[Measured]:
        prompts, made = self._prompts(subject), [look.pictures for look in self.looks(subject)]
        images = [subject.features(pictures, RAW) for pictures in made]  # (N, 3, fH, fW) uint8 each
        grades = [grade(one.numpy(), prompts, WORLD) for one in images]
        report = make_report(prompts * len(grades), [one for some in grades for one in some])
        if subject.together.is_main:
            self._write(subject, report, prompts, grades)
            write_gallery(
                subject.folder / "composition.png", images[0], prompts, grades[0], title=subject.title
            )
        return [self._measured(subject, one, report, prompts, grades) for one in self.protocols(subject)]

    def table(self, scores: Sequence[Score], *, title: str) -> Table | None:
        """The report for people, from its scores."""
        report = next((score.extra["report"] for score in scores if score.metric == WHOLE), None)
        return None if report is None else make_table(report, title=title)

    def _prompts(self, subject: Subject) -> list[Prompt]:
        return evaluation_prompts(self.num_prompts, subject.seeds[0])

    def _samples(self, subject: Subject, seed: int) -> Samples:
        noise = _noise(seed, self.num_prompts)
        return subject.samples(
            [ToMake(one.text, own) for one, own in zip(self._prompts(subject), noise, strict=True)]
        )

    def _measured(
        self,
        subject: Subject,
        protocol: Protocol,
        report: Report,
        prompts: Sequence[Prompt],
        grades: Sequence[Sequence[Grade]],
    ) -> Measured:
        _, name, aspect = protocol.metric.split("/")
        group = name.replace("_", " ")
        share = report[group][aspect]
        verdicts = {
            f"{seed}/{i}": float(verdict)
            for seed, some in zip(subject.seeds, grades, strict=True)
            for i, (prompt, one) in enumerate(zip(prompts, some, strict=True))
            if prompt.seen is GROUPS[group] and (verdict := getattr(one, aspect)) is not None
        }
        each = [
            [value for key, value in verdicts.items() if key.startswith(f"{seed}/")] for seed in subject.seeds
        ]
        return Measured(
            protocol=protocol,
            value=share["share"],
            num=int(share["asked"]),
            per_seed=tuple(float(np.mean(some)) for some in each),
            low=share["low"],
            high=share["high"],
            interval="Wilson's, over pictures",
            lower_is_better=False,
            per_sample=PerSample(tuple(verdicts), np.array(list(verdicts.values()))[:, None]),
            extra={"report": _plain(report)} if protocol.metric == WHOLE else {},
        )

    def _write(
        self, subject: Subject, report: Report, prompts: Sequence[Prompt], grades: Sequence[Sequence[Grade]]
    ) -> None:
        """composition.json and composition.csv."""
        folder = subject.folder
        folder.mkdir(parents=True, exist_ok=True)
        recipe = {"scored": subject.title, **self.protocols(subject)[0].to_plain(), "metric": "composition"}
        (folder / "composition.json").write_text(
            json.dumps({"recipe": recipe, "report": _plain(report)}, indent=1) + "\n"
        )
        with (folder / "composition.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "kind", "seen", "seed", *ASPECTS, "found"])
            for seed, some in zip(subject.seeds, grades, strict=True):
                for prompt, noise, one in zip(prompts, _noise(seed, len(prompts)), some, strict=True):
                    verdicts = [getattr(one, aspect) for aspect in ASPECTS]
                    found = json.dumps([asdict(thing) for thing in one.found])
                    writer.writerow([prompt.text, prompt.kind, prompt.seen, noise, *verdicts, found])


def _noise(seed: int, num: int) -> list[int]:
    """Each picture's own seed."""
    return [address(seed, "evaluation noise", i) for i in range(num)]


def make_report(prompts: Sequence[Prompt], grades: Sequence[Grade]) -> Report:
    """Shares right with their 95 % intervals, for seen and never-seen combinations, whole and by kind of prompt."""
    report: Report = {}
    for group, seen in GROUPS.items():
        for kind in (None, *KINDS):
            chosen = [
                one
                for prompt, one in zip(prompts, grades, strict=True)
                if prompt.seen is seen and kind in (None, prompt.kind)
            ]
            report[group if kind is None else f"{group}, {kind}"] = {
                aspect: _share(right, asked) for aspect, (right, asked) in tally(chosen).items()
            }
    return report


def _share(right: int, asked: int) -> dict[str, float]:
    low, high = wilson(right, asked)
    share = right / asked if asked else float("nan")
    return {"right": right, "asked": asked, "share": share, "low": low, "high": high}


def _plain(report: Report) -> dict[str, Any]:
    """What was not asked has no share: null, since JSON has no NaN."""
    return {
        group: {
            aspect: {name: None if value != value else value for name, value in share.items()}
            for aspect, share in cells.items()
        }
        for group, cells in report.items()
    }


def make_table(report: Mapping[str, Any], *, title: str) -> Table:
    """The report for people: per cent right, and the 95 % interval."""
    table = Table(title=title, caption="per cent right, 95 % interval; relation where one was asked for")
    table.add_column("combinations", no_wrap=True)
    table.add_column("prompts", justify="right")
    for aspect in ASPECTS:
        table.add_column(aspect.replace("_", " "), justify="right")
    for group, cells in report.items():
        whole = "," not in group
        table.add_row(
            group if whole else f"  {group.split(', ')[1]}",
            f"{cells['all_right']['asked']:.0f}",
            *(_cell(cells[aspect]) for aspect in ASPECTS),
            style="bold" if whole else "",
        )
    return table


def _cell(share: Mapping[str, Any]) -> str:
    if not share["asked"]:
        return "-"
    # On two lines, so that the table fits into 80 columns.
    return f"{100 * share['share']:.1f}\n{100 * share['low']:.0f}-{100 * share['high']:.0f}"


def write_gallery(
    path: Path, images: Tensor, prompts: Sequence[Prompt], grades: Sequence[Grade], *, title: str
) -> None:
    """The first right ones above the first wrong ones, with what was asked for and what was read."""
    rows = []
    for name, wanted in (("right", True), ("wrong", False)):
        chosen = [i for i, one in enumerate(grades) if one.all_right is wanted]
        if chosen:
            shown = chosen[:NUM_SHOWN]
            labels = [prompts[i].text if wanted else f"{prompts[i].text} / {_said(grades[i])}" for i in shown]
            head = f"{len(chosen)} of {len(grades)} {name}: {title}"
            rows.append(labelled_grid(images[shown], labels, columns=8, title=head))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _said(one: Grade) -> str:
    """What was read from a picture, in few words."""
    if not one.found:
        return "read: nothing"
    return "read: " + ", ".join(f"{thing.colour or 'odd'} {thing.shape or 'blot'}" for thing in one.found)
