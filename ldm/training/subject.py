"""One checkpoint of a run as metrics see it: what ``ldm.evaluation.subject.Subject`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm
from ldm.codecs.kl import KLCodec
from ldm.data.pipeline import ShardDataset
from ldm.evaluation.features import FeatureNetwork, Features
from ldm.evaluation.frechet import Moments
from ldm.evaluation.looking import OnBatch, Pictures, add_up, forget, look
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.subject import Look, Prompt
from ldm.evaluation.together import Together
from ldm.interfaces import LatentCodec
from ldm.sampling.generate import Generation
from ldm.sampling.recipe import part_to_plain
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.picture_sets import Made, Reconstructed, Reference, hash_of, spread
from ldm.training.unfinished import MEASURED, InTraining


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which weights are scored.

    Attributes:
        run: ``<name>/<run id>``.
        checkpoint: Its file or folder name.
        checkpoint_hash: Tells it from all others.
        images_seen: By the training until then.
        weights: "ema", "online", or the name of an average.
        ema_width: Of the average, as the run's config writes it.
    """

    run: str
    checkpoint: str
    checkpoint_hash: str
    images_seen: int
    weights: str
    ema_width: float | None = None

    @property
    def title(self) -> str:
        return f"{self.run}, {self.images_seen:,} images seen, {self.weights} weights"


@dataclass(kw_only=True)
class RunSubject:
    """See ``Subject``.

    Args:
        origin: Which weights are in the module.
        module: The task's module, on its device, in evaluation mode.
        generation: What makes its pictures; None for an autoencoder.
        data: Builds the run's data module; asked once, when a metric wants data.
        seeds: Of the sampling noise.
        folder: Where pictures and tables go.
        kept: Where walks over samples are kept, so that they can go on; None keeps nothing.
        references: Where features of reference sets are kept; None keeps nothing.
        together: This process among the others.
        device: Where.
        batch_size: Pictures at a time.
        num_workers: Processes that decode the data's pictures.
        on_batch: Told after each batch of a walk: (what it is over, pictures seen, pictures in all).
    """

    origin: Origin
    module: Any
    generation: Generation | None
    data_module: Callable[[], Any]
    seeds: Sequence[int]
    folder: Path
    kept: Path | None
    references: Path | None
    together: Together
    device: torch.device
    batch_size: int
    num_workers: int = 0
    on_batch: Callable[[str, int, int], None] | None = None
    _opened: dict[FeatureNetwork, Features] = field(default_factory=dict)
    _codecs: dict[str | None, LatentCodec] = field(default_factory=dict)
    _seen: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _moments: dict[tuple[str, str], Moments] = field(default_factory=dict)
    _datasets: dict[str, ShardDataset] = field(default_factory=dict)
    _captions: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    _references: dict[tuple[str, int | None, bool], Reference] = field(default_factory=dict)
    _walks: set[Path] = field(default_factory=set)

    @property
    def makes_pictures(self) -> bool:
        return self.generation is not None

    @property
    def title(self) -> str:
        return self.origin.title

    @cached_property
    def data(self) -> Any:
        return self.data_module()

    # --- pictures -----------------------------------------------------------------------------------------------

    def samples(self, prompts: Sequence[Prompt]) -> Made:
        assert self.generation is not None, "asked for pictures of a run that makes none"
        height, width = self.module.latent_size
        return Made(
            generation=self.generation,
            prompts=tuple(prompts),
            latent_size=(int(height), int(width)),
            batch_size=self.batch_size,
            made_by={
                "checkpoint": self.origin.checkpoint_hash,
                "weights": self.origin.weights,
                "codec": self.codec().content_hash,
                **self._sampling,
            },
        )

    def reference(self, split: str, num: int | None = None, *, one_size: bool = False) -> Reference:
        place = (split, num, one_size)
        if place not in self._references:
            dataset = self.dataset(split)
            rows = spread(len(dataset) if num is None else num, len(dataset))
            if one_size and len(dataset.assignment.sizes) > 1:
                fullest = set(dataset.assignment.members(int(dataset.assignment.counts().argmax())).tolist())
                rows = tuple(i for i in rows if i in fullest)
            name = "training set" if split == "train" else "validation set"
            part = "" if len(rows) == len(dataset) else f"{len(rows):,} of "
            title = f"{part}{name} of {len(dataset):,}"
            self._references[place] = Reference(dataset, rows, title, self.batch_size, self.num_workers)
        return self._references[place]

    def reconstructions(self, originals: Pictures) -> Reconstructed:
        return Reconstructed(originals, self.codec(), self.device)

    def pairs(self, originals: Pictures) -> Reconstructed:
        return Reconstructed(originals, self.codec(), self.device, beside=True)

    def captions(self, split: str, num: int) -> list[str]:
        if (split, num) not in self._captions:
            dataset = self.dataset(split)
            rows = spread(num, len(dataset))
            self._captions[split, num] = [
                caption_of(dataset, rows[i % len(rows)], visit=i // len(rows)) for i in range(num)
            ]
        return self._captions[split, num]

    def dataset(self, split: str) -> ShardDataset:
        if split not in self._datasets:
            self._datasets[split] = self.data.measured(split)
        return self._datasets[split]

    # --- networks -----------------------------------------------------------------------------------------------

    def codec(self, path: str | None = None) -> LatentCodec:
        if path not in self._codecs:
            if path is not None:
                self._codecs[path] = KLCodec(path=path).to(self.device)
            elif isinstance(self.module, AutoencoderModule):
                name = hash_of([self.origin.checkpoint_hash, self.origin.weights])
                self._codecs[path] = InTraining(self.module, name, self.reference("train", MEASURED))
            else:
                self._codecs[path] = self.module.codec
        return self._codecs[path]

    def opened(self, network: FeatureNetwork) -> Features:
        if network not in self._opened:
            self._opened[network] = network.open(device=self.device, codecs=self.codec)
        return self._opened[network]

    # --- what networks see --------------------------------------------------------------------------------------

    def prepare(self, looks: Sequence[Look]) -> None:
        """Walk over each set of pictures once for all networks that want to see it."""
        wanted: dict[str, tuple[Pictures, dict[str, Features]]] = {}
        for pictures, network in looks:
            features = self.opened(network)
            if (pictures.content_hash, features.key) not in self._seen:
                wanted.setdefault(pictures.content_hash, (pictures, {}))[1][features.key] = features
        for pictures, networks in wanted.values():
            found = look(
                pictures,
                networks,
                together=self.together,
                keep=self._keep(pictures, *networks),
                on_batch=self._told(pictures),
            )
            self._seen |= {(pictures.content_hash, key): rows for key, rows in found.items()}

    def features(self, pictures: Pictures, network: FeatureNetwork) -> Tensor:
        self.prepare([Look(pictures, network)])
        return self._seen[pictures.content_hash, self.opened(network).key]

    def moments(self, pictures: Pictures, network: FeatureNetwork) -> Moments:
        features = self.opened(network)
        place = (pictures.content_hash, features.key)
        if place in self._seen:
            return Moments.of(self._seen[place])
        if place not in self._moments:
            keep = self._keep(pictures, features.key)
            file = None if keep is None else keep / "moments.safetensors"
            if file is not None and self.together.all(file.is_file()):
                self._moments[place] = read_moments(file)
            else:
                sums = add_up(pictures, features, together=self.together, on_batch=self._told(pictures))
                self._moments[place] = sums.moments()
                if file is not None and self.together.is_main:
                    write_moments(file, self._moments[place])
        return self._moments[place]

    def forget(self) -> None:
        """Remove what was kept of samples; other jobs' stays."""
        if self.together.is_main:
            for walk in self._walks:
                forget(walk)
            if self.kept is not None and self.kept.is_dir() and not any(self.kept.iterdir()):
                self.kept.rmdir()

    def _keep(self, pictures: Pictures, *networks: str) -> Path | None:
        """Samples beside the run, until they are scored; references where other runs find them."""
        if isinstance(pictures, Made):
            if self.kept is None:
                return None
            self._walks.add(self.kept / pictures.content_hash[:16])
            return self.kept / pictures.content_hash[:16]
        if self.references is None or not isinstance(pictures, Reference):
            return None
        return self.references / pictures.content_hash[:16] / hash_of(sorted(networks))[:16]

    def _told(self, pictures: Pictures) -> OnBatch | None:
        if self.on_batch is None:
            return None
        on_batch, title = self.on_batch, pictures.title
        return lambda seen, total: on_batch(title, seen, total)

    # --- the passport -------------------------------------------------------------------------------------------

    def passport(self, metric: str, *, samples: bool, **fields: Any) -> Protocol:
        common: dict[str, Any] = {
            "metric": metric,
            "weights": self.origin.weights.partition("#")[0],
            "ema_width": self.origin.ema_width,
            "precision": str(next(self.module.parameters()).dtype).removeprefix("torch."),
            "made_with": self._made_with,
        }
        if samples:
            common |= {**self._sampling, "seeds": tuple(self.seeds), "codec_hash": self.codec().content_hash}
        return Protocol(**{**common, **fields})

    @cached_property
    def _sampling(self) -> dict[str, Any]:
        assert self.generation is not None
        return {
            "sampler": part_to_plain(self.generation.sampler),
            "grid": part_to_plain(self.generation.grid),
            "num_steps": self.generation.num_steps,
            "guidance": part_to_plain(self.generation.guidance),
        }

    @cached_property
    def _made_with(self) -> Mapping[str, Any]:
        return {"ldm": ldm.__version__, "torch": torch.__version__, "device": self.device.type}


def ema_width(config: Any) -> float | None:
    """Of the average that a run's config evaluates: its decay or sigma_rel; None where it keeps none."""
    found = OmegaConf.select(config, "callbacks.ema")
    width = None if found is None else found.get("decay", found.get("shown"))
    return None if width is None else float(width)


def caption_of(dataset: ShardDataset, i: int, *, visit: int) -> str:
    """What sample ``i`` is called at a visit, without a look at its picture."""
    index = dataset.index
    return dataset.preparation_of(i).caption(
        index.read(i, "txt"), index.read(i, "json"), key=index.key(i), visit=visit
    )


def write_moments(file: Path, moments: Moments) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    save_file({"mean": moments.mean, "cov": moments.cov, "num": torch.tensor(moments.num)}, draft)
    draft.replace(file)


def read_moments(file: Path) -> Moments:
    held = load_file(file)
    return Moments(int(held["num"]), held["mean"], held["cov"])
