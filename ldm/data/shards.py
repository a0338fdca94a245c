"""Image-text shards: plain tar files in the layout of img2dataset, written whole or not at all.

A sample is three members that stand next to each other and share a key::

    000030017.json      what is known of the picture; may hold "captions": [...], several phrasings
    000030017.png       the encoded picture (or .jpg, ...)
    000030017.txt       its caption

The key names the shard (five digits) and the place in it (four), so a shard holds at most 10,000 samples.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from webdataset.writer import TarWriter

MAX_SAMPLES_PER_SHARD = 10_000
CACHE = "LDM_CACHE"  # environment variable: the folder for what cannot be kept beside read-only shards


def shard_path(folder: str | Path, shard: int) -> Path:
    """Where shard number ``shard`` of a folder lives, e.g. ``folder/00003.tar``."""
    return Path(folder) / f"{shard:05d}.tar"


def sample_key(shard: int, index: int) -> str:
    """The key of the ``index``-th sample of a shard, e.g. ``000030017``."""
    return f"{shard:05d}{index:04d}"


def index_path(shard: Path, *, cache: bool = False) -> Path:
    """Where the index of a shard is kept: beside it, or, for shards that lie read-only, in a cache folder."""
    if not cache:
        return shard.with_suffix(".idx") if shard.suffix == ".tar" else shard.with_name(shard.name + ".idx")
    root = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ldm"
    place = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:16]
    return Path(root) / "index" / f"{place}-{shard.stem}.idx"


def check_samples_per_shard(samples_per_shard: int) -> None:
    """Raises ValueError where the keys have no room for so many."""
    if not 1 <= samples_per_shard <= MAX_SAMPLES_PER_SHARD:
        raise ValueError(
            f"samples_per_shard is {samples_per_shard}; a key has four digits for the place in its shard, "
            f"so give 1 to {MAX_SAMPLES_PER_SHARD}"
        )


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and goes when it does not.

    Whoever sees ``path`` sees all of it: a killed process leaves at most a ``.partial`` file, which the next
    attempt overwrites.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut can leave the final name on an empty file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Writes samples into numbered shards; each appears under its name only when it is complete.

    A shard that is already there is left as it is and the samples meant for it are passed over. So giving an
    interrupted writing the same samples again continues it, and ends in the same shards. An error inside the
    ``with`` block drops the shard under way and keeps the finished ones.

    Args:
        folder: made when missing.
        samples_per_shard: 1 to 10,000; the last shard may hold fewer.
        first_shard: the number of the first shard, for several processes that each write their own.
    """

    def __init__(self, folder: str | Path, *, samples_per_shard: int = 1_000, first_shard: int = 0) -> None:
        check_samples_per_shard(samples_per_shard)
        self.folder = Path(folder)
        self.samples_per_shard = samples_per_shard
        self.shard = first_shard
        self.index = 0  # of the next sample in the shard
        self.num_written = 0
        self._open = ExitStack()  # the shard under way: its file, its tar, its final name
        self._tar: TarWriter | None = None  # None also while passing over a shard that is already there

    def write(self, image: bytes, extension: str, caption: str, meta: Mapping[str, Any]) -> str:
        """Append one sample.

        Args:
            image: the encoded picture, as it shall stand in the shard.
            extension: of its format, "png" or "jpg".
            caption: any text.
            meta: what json can hold.

        Returns:
            The sample's key.
        """
        if self.index == 0:
            self._begin()
        key = sample_key(self.shard, self.index)
        if self._tar is not None:
            self._tar.write(
                {
                    "__key__": key,
                    "json": json.dumps(dict(meta), ensure_ascii=False, sort_keys=True).encode(),
                    extension.lower().lstrip("."): image,
                    "txt": caption.encode(),
                }
            )
            self.num_written += 1
        self.index += 1
        if self.index == self.samples_per_shard:
            self._finish()
        return key

    def _begin(self) -> None:
        path = shard_path(self.folder, self.shard)
        if path.exists():
            return
        index_path(path).unlink(missing_ok=True)  # of a shard of this name that was here before
        from webdataset.writer import TarWriter  # here, because it brings torch with it

        partial = self._open.enter_context(written_whole(path))
        file = self._open.enter_context(partial.open("wb"))
        # No clock and no names in the headers: the same samples make the same bytes.
        tar = TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False)
        self._tar = self._open.enter_context(tar)

    def _finish(self) -> None:
        self._open.close()
        self._tar = None
        self.shard += 1
        self.index = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)  # drops the partial file
        elif self.index > 0:
            self._finish()


def find_shards(where: str | Path | Sequence[str | Path]) -> list[Path]:
    """The shards that a folder, a pattern or a list of these stands for, in order.

    Args:
        where: a folder (its ``*.tar``), a file, a glob pattern (``data/*.tar``), a brace pattern
            (``data/{00000..00009}.tar``) or a list of any of them.

    Raises:
        FileNotFoundError: nothing matches, or a named shard is missing; the message says what lies near it.
        ValueError: an address that would run a program, or a shard that is named twice.
    """
    patterns = [where] if isinstance(where, (str, Path)) else list(where)
    if not patterns:
        raise FileNotFoundError(
            "no shards given: the list is empty; name a folder or a pattern like data/*.tar"
        )
    shards = [path for pattern in patterns for path in _matches(str(pattern))]
    twice = [str(path) for path, count in Counter(shards).items() if count > 1]
    if twice:
        raise ValueError(f"shard {twice[0]} is named twice (and {len(twice) - 1} more); name each once")
    return shards


def _matches(pattern: str) -> list[Path]:
    if pattern.startswith("pipe:"):
        raise ValueError(f"shards '{pattern}': an address that runs a program is refused; name files")
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
        if not found:
            raise FileNotFoundError(f"no *.tar in the folder '{pattern}'; {_near(Path(pattern))}")
        return found
    from braceexpand import braceexpand

    found, missing, names = [], [], list(braceexpand(pattern))
    for name in names:
        here = sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
        here = [path for path in here if path.is_file()]
        found += here
        missing += [] if here else [name]
    if missing:
        of = f" ({len(missing)} of its {len(names)} names are missing, {len(found)} shards are there)"
        raise FileNotFoundError(
            f"no shard '{missing[0]}', asked for by '{pattern}'{of if len(names) > 1 else ''}; "
            f"{_near(Path(missing[0]).parent)}"
        )
    return found


def _near(folder: Path) -> str:
    """What lies in the folder, or in the nearest one above that exists."""
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    listed = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"in '{folder}' there is {listed or 'nothing'}"
