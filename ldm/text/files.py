"""Where the files of pretrained text models are: in a folder that the user names, or in Hugging Face's own cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.needs import MissingNeeds, Need, package, refuse_unmet

# What a tokenizer can be read from; one of these sets is enough.
TOKENIZERS = (
    ("tokenizer.json",),
    ("spiece.model",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
POINTER = 1024  # bytes: a file of weights that is smaller is what git leaves in place of a large file


@dataclass(frozen=True, kw_only=True)
class PretrainedFolder:
    """A text model and its tokenizer in the layout of Hugging Face: a repository, or a pipeline of diffusers.

    Args:
        repo: Its name on the Hugging Face hub, whose cache is looked into where no ``path`` is given.
        path: A folder that holds it; nothing else is looked at then.
        subfolder: Where the model stands in it: "text_encoder" in a pipeline of diffusers.
        tokenizer_subfolder: Where the tokenizer stands in it: "tokenizer" in a pipeline of diffusers.
        variant: Of the weights: "fp16" reads model.fp16.safetensors.
        revision: Branch, tag or commit on the hub; None for its main branch.
        allow_download: Download what is not there. Otherwise nothing ever is.

    Raises:
        ValueError: Neither ``repo`` nor ``path``.
    """

    repo: str | None = None
    path: str | None = None
    subfolder: str = ""
    tokenizer_subfolder: str = ""
    variant: str | None = None
    revision: str | None = None
    allow_download: bool = False

    def __post_init__(self) -> None:
        if self.repo is None and self.path is None:
            raise ValueError("give the path of the model's folder, or repo, its name on the Hugging Face hub")

    def needs(self) -> list[Need]:
        library = package("transformers", extra="text")
        return [library, *self.model_needs(), *self.tokenizer_needs()] if library.is_met else [library]

    def model_needs(self) -> list[Need]:
        place = self.place()
        lacking = ["all"] if place is None else missing_weights(place / self.subfolder, self.variant)
        return [self._need("text model", self.subfolder, lacking)]

    def tokenizer_needs(self) -> list[Need]:
        place = self.place()
        lacking = ["all"] if place is None else missing_tokenizer(place / self.tokenizer_subfolder)
        return [self._need("tokenizer of", self.tokenizer_subfolder, lacking)]

    def place(self) -> Path | None:
        """The folder, complete or not; None where there is none."""
        if self.path is not None:
            return Path(self.path) if Path(self.path).is_dir() else None
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(str(self.repo), revision=self.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def model_folder(self) -> Path:
        """Where the model is read from; downloads it where that is allowed.

        Raises:
            MissingNeeds: It is not there.
        """
        refuse_unmet([package("transformers", extra="text"), *self.model_needs()])
        return self._there(self.model_needs()) / self.subfolder

    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is read from; see ``model_folder``."""
        refuse_unmet([package("transformers", extra="text"), *self.tokenizer_needs()])
        return self._there(self.tokenizer_needs()) / self.tokenizer_subfolder

    def _there(self, needs: Sequence[Need]) -> Path:
        for need in needs:
            if need.found is None:
                with downloading(need):
                    self._download()
        place = self.place()
        assert place is not None
        return place

    def _download(self) -> None:
        from huggingface_hub import list_repo_files, snapshot_download

        repo = str(self.repo)
        files = wanted_files(
            list_repo_files(repo, revision=self.revision),
            folders=(self.subfolder, self.tokenizer_subfolder),
            variant=self.variant,
        )
        snapshot_download(repo, revision=self.revision, allow_patterns=files)

    def _need(self, kind: str, subfolder: str, lacking: Sequence[str]) -> Need:
        name = self.repo or str(self.path)
        folder = self.place()
        where = f"{folder or self.path}" if self.path else f"Hugging Face's cache {cache_folder()}"
        looked = str(Path(where) / subfolder) if self.path else where
        missing = "" if lacking == ["all"] else f" ({', '.join(lacking[:3])})"
        bring = "copy the whole folder there, or give its place with {key}path=..."
        if self.repo is not None:
            local = self.repo.rpartition("/")[2]
            bring = (
                f"where there is internet: hf download {self.repo} --local-dir {local}, then copy the folder here and "
                f"give {{key}}path=<folder>; or let it be downloaded with allow_download=true"
            )
        return Need(
            what=f"the {kind} {name}{missing}",
            found=None if lacking or folder is None else str(folder / subfolder),
            looked_in=(looked,),
            bring=bring,
            fetched=bool(lacking) and self.allow_download and self.path is None,
        )


@contextmanager
def downloading(need: Need) -> Iterator[None]:
    """Around a download of ``need``.

    Raises:
        MissingNeeds: It fails, for whatever reason: no internet, no such repository, a licence that was not accepted.
    """
    try:
        yield
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        bring = f"downloading it failed ({type(error).__name__}: {why}); {need.bring}"
        raise MissingNeeds([("", replace(need, fetched=False, bring=bring))]) from error


def cache_folder() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def missing_weights(folder: Path, variant: str | None = None) -> list[str]:
    """Names of files that a model's folder lacks; [] when it is complete."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    part = "" if variant is None else f".{variant}"
    sets = []
    for stem, end in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{end}.index{part}.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            sets.append([name for name in shards if not _is_whole(folder / name)])
        else:
            name = f"{stem}{part}.{end}"
            sets.append([] if _is_whole(folder / name) else [name])
    return [] if [] in sets else sets[0]


def missing_tokenizer(folder: Path) -> list[str]:
    """Names of files that a tokenizer's folder lacks; [] when it can be read."""
    complete = any(all((folder / name).is_file() for name in names) for names in TOKENIZERS)
    return [] if complete else ["tokenizer.json"]


def wanted_files(files: Iterable[str], *, folders: Sequence[str], variant: str | None) -> list[str]:
    """Of a repository's files those to download: small ones, and weights in one format, safetensors if there are."""
    part = "" if variant is None else f".{variant}"
    small, weights = [], {"safetensors": list[str](), "bin": list[str]()}
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in folders:
            continue
        if name.endswith((".json", ".txt", ".model")):
            small.append(file)
        for stem, end in (("model", "safetensors"), ("pytorch_model", "bin")):
            if name == f"{stem}{part}.{end}" or (
                name.startswith(f"{stem}{part}-") and name.endswith(f".{end}")
            ):
                weights[end].append(file)
    return small + (weights["safetensors"] or weights["bin"])


def _is_whole(file: Path) -> bool:
    return file.is_file() and file.stat().st_size >= POINTER
