"""The same pictures read by other projects' loaders, as their documentation shows it, each with two decoders.

A reader is (folder, workers) -> endless batches (64, 3, 128, 128) of floats in [0, 1] or [-1, 1]. Everyone shuffles,
resizes the shorter side to 128 and crops the middle.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

BATCH, SIDE = 64, 128
Reader = Callable[[Path, int], Iterator[torch.Tensor]]

by_torchvision = transforms.Compose(
    [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()]
)


def with_pil(data: bytes) -> torch.Tensor:
    return by_torchvision(Image.open(io.BytesIO(data)).convert("RGB"))


def with_simplejpeg(data: bytes) -> torch.Tensor:
    """libjpeg-turbo's scaled decoding, then the resize and crop that everybody has."""
    values = simplejpeg.decode_jpeg(data, min_height=SIDE, min_width=SIDE)
    if min(values.shape[:2]) != SIDE:
        return by_torchvision(Image.fromarray(values))
    top, left = ((length - SIDE) // 2 for length in values.shape[:2])
    square = values[top : top + SIDE, left : left + SIDE]
    return torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1).float().div_(255)


DECODERS = {"PIL": with_pil, "simplejpeg": with_simplejpeg}


def ours(**options: float) -> Reader:
    def read(folder: Path, workers: int) -> Iterator[torch.Tensor]:
        from ldm.data.blend import order_of
        from ldm.data.pipeline import ShardDataset, endless

        data = ShardDataset(shards=str(folder / "shards"), image_size=SIDE, **options)
        order = order_of(data, num=len(data), global_batch=BATCH)
        for batch in endless(data, lambda: order, num_workers=workers):
            yield batch.images

    return read


def webdataset(decoder: str) -> Reader:
    def read(folder: Path, workers: int) -> Iterator[torch.Tensor]:
        import webdataset as wds

        shards = sorted(map(str, (folder / "shards").glob("*.tar")))
        data = (
            wds.WebDataset(shards, shardshuffle=100, nodesplitter=None)
            .shuffle(1000)
            .to_tuple("jpg", "txt")
            .map_tuple(DECODERS[decoder], bytes.decode)
            .batched(BATCH, partial=False)
        )
        while True:
            for images, _ in wds.WebLoader(data, batch_size=None, num_workers=workers):
                yield torch.as_tensor(images)

    return read


class _Decoded(torch.utils.data.Dataset):
    """A map-style data set's samples, decoded."""

    def __init__(self, samples: Any, decode: Callable[[bytes], torch.Tensor]) -> None:
        self.samples, self.decode = samples, decode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        sample = self.samples[i]
        return self.decode(sample["jpg"]), sample["txt"]


def streaming(decoder: str) -> Reader:
    def read(folder: Path, workers: int) -> Iterator[torch.Tensor]:
        from streaming import StreamingDataset

        class Pictures(StreamingDataset):
            def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
                sample = super().__getitem__(i)
                return DECODERS[decoder](sample["jpg"]), sample["txt"]

        data = Pictures(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
        while True:
            # litdata makes "spawn" the whole process's way, which cannot take a class from inside a function.
            way = "fork" if workers else None
            for images, _ in DataLoader(
                data, batch_size=BATCH, num_workers=workers, drop_last=True, multiprocessing_context=way
            ):
                yield images

    return read


def litdata(decoder: str) -> Reader:
    def read(folder: Path, workers: int) -> Iterator[torch.Tensor]:
        import litdata as ld

        class Pictures(ld.StreamingDataset):
            def __getitem__(self, i: Any) -> tuple[torch.Tensor, str]:
                sample = super().__getitem__(i)
                return DECODERS[decoder](sample["jpg"]), sample["txt"]

        data = Pictures(str(folder / "litdata"), shuffle=True, drop_last=True)
        while True:
            for images, _ in ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers):
                yield images

    return read


READERS: dict[str, Reader] = {
    "ldm": ours(),
    "ldm, decode_margin 1": ours(decode_margin=1.0),
    **{f"webdataset + {decoder}": webdataset(decoder) for decoder in DECODERS},
    **{f"mosaicml-streaming + {decoder}": streaming(decoder) for decoder in DECODERS},
    **{f"litdata + {decoder}": litdata(decoder) for decoder in DECODERS},
}


def convert(folder: Path) -> None:
    """The shards' pictures in the peers' own formats."""
    from ldm.data.index import build_index
    from ldm.data.shards import find_shards

    index = build_index(find_shards(folder / "shards"))
    if not (folder / "mds").exists():
        try:
            from streaming import MDSWriter
        except ImportError:
            MDSWriter = None
        if MDSWriter is not None:
            with MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes", "txt": "str"}) as out:
                for i in range(len(index)):
                    out.write({"jpg": index.read(i, "picture"), "txt": index.read(i, "txt").decode()})
    if not (folder / "litdata").exists():
        try:
            import litdata as ld
        except ImportError:
            return
        ld.optimize(
            fn=_Sample(folder),
            inputs=list(range(len(index))),
            output_dir=str(folder / "litdata"),
            chunk_bytes="64MB",
            num_workers=1,
        )


class _Sample:
    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, None

    def __call__(self, i: int) -> dict[str, Any]:
        from ldm.data.index import build_index
        from ldm.data.shards import find_shards

        if self.index is None:
            self.index = build_index(find_shards(self.folder / "shards"))
        return {"jpg": self.index.read(i, "picture"), "txt": self.index.read(i, "txt").decode()}
