"""Whether the disks have room for all that a training writes."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from ldm.commands.blueprint import averages, blueprint, built
from ldm.commands.compose import CONFIGS
from ldm.commands.disk import Amount, amounts
from ldm.commands.findings import FAIL, OK, WARN, Finding
from ldm.commands.messages import first_line
from ldm.planning.autocast import PRECISIONS
from ldm.planning.hardware import GIB
from ldm.planning.memory import state_of
from ldm.planning.uncompiled import without_compiler


def disk(config: DictConfig) -> Iterator[Finding]:
    """A row for each kind of files, and one for each disk that they are written to."""
    try:
        written = [one for one in reckoned(config) if one.place is not None]
    except (ValueError, RuntimeError, OSError) as error:
        found = f"cannot be reckoned: {first_line(error)}"
        yield Finding(level=FAIL, what="disk", found=found, remedy="what else is said here, first")
        return
    wanted: dict[Path, int] = defaultdict(int)  # by a folder of each disk; the first is the runs' own
    disks: dict[int, Path] = {}
    for one in sorted(written, key=lambda one: one.place != Path(config.paths.runs)):
        assert one.place is not None
        where = existing(one.place)
        here = disks.setdefault(where.stat().st_dev, where)
        what = f"disk: {one.what}"
        if one.size is None:
            yield Finding(level=WARN, what=what, found="nobody can know how many", remedy="ldm index")
            continue
        there = 0 if one.place == Path(config.paths.runs) else min(one.size, size_of(one.place))
        wanted[here] += one.size - there
        found = f"about {one.size / GIB:,.2f} GiB in {one.place}"
        yield Finding(
            level=OK, what=what, found=f"{found}, {there / GIB:,.2f} there already" if there else found
        )
    for number, (where, size) in enumerate(wanted.items()):
        yield room(where, size, what="disk" if number == 0 else f"disk of {where}")


def reckoned(config: DictConfig) -> list[Amount]:
    """
    Raises:
        ValueError: Parts that do not fit each other, or files that are missing.
    """
    precision = PRECISIONS.get(str(config.trainer.precision), PRECISIONS["32-true"])
    with without_compiler():
        subject, _ = blueprint(config, configs=CONFIGS)
        optimizer = built(config.optimizer)
        state = state_of(subject, optimizer=optimizer, precision=precision, averages=averages(config))
    return amounts(config, subject, state, num_pictures=None)


def room(where: Path, wanted: int, *, what: str) -> Finding:
    """Of one disk."""
    free = shutil.disk_usage(where).free
    found = f"{free / GIB:,.0f} GiB free at {where}, about {wanted / GIB:,.1f} will be written"
    if free < wanted:
        remedy = "another paths.runs=... or data.folder=..., or a larger callbacks.checkpoints.keep_every_num_images"
        return Finding(level=FAIL, what=what, found=found, remedy=remedy)
    if not os.access(where, os.W_OK):
        return Finding(
            level=FAIL,
            what=what,
            found=f"{where} cannot be written to",
            remedy="another paths.runs=... or data.folder=...",
        )
    return Finding(level=OK, what=what, found=found)


def existing(place: Path) -> Path:
    """The nearest folder above that is there."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def size_of(folder: Path) -> int:
    """Bytes of the files in it; what another autoencoder or text encoder made counts, too."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
