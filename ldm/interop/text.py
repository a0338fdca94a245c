"""The text encoders of a pipeline's folder: a run's own in the classes of transformers, or copies of others'."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldm.interfaces import TextEncoder
from ldm.interop.folder import read_json
from ldm.interop.pipelines import Pipeline, Taken

INDEX = "model_index.json"
PROBES = ("a photograph of an astronaut riding a horse", "")
# Of each vector's length. In half precision two implementations of a layer round to different numbers; vectors of
# another caption are about 1 apart.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Pools(Protocol):
    @property
    def projected(self) -> bool: ...


class TextModel(Protocol):
    """One text model and what a run takes of it: see ``ldm/text/pretrained.py``."""

    @property
    def model(self) -> Callable[[], Any]: ...
    @property
    def save_tokenizer(self) -> Callable[[Path], str]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def layer(self) -> int: ...
    @property
    def final_norm(self) -> bool: ...
    @property
    def pooling(self) -> Pools: ...
    @property
    def length(self) -> int: ...
    @property
    def attends_padding(self) -> bool: ...
    @property
    def lowercase(self) -> bool: ...
    @property
    def caution(self) -> str: ...


class TextSide(Protocol):
    """Text models in their order, and how they are joined: "clip beside clip, then t5"."""

    @property
    def models(self) -> Sequence[TextModel]: ...
    @property
    def arrangement(self) -> str: ...


@runtime_checkable
class HasTextSide(Protocol):
    """A text encoder that can say what it is made of.

    Raises:
        ValueError: Transformers has no class for a part of it.
    """

    def text_side(self) -> TextSide: ...


def components_in(folder: Path, pipeline: Pipeline | None) -> dict[str, Any]:
    """What of a pipeline's text side stands in another folder, with library and class.

    Raises:
        FileNotFoundError: It is no pipeline's folder, or lacks a component that its index names.
        ValueError: It has nothing that this pipeline uses.
    """
    index = read_json(folder / INDEX)
    wanted = pipeline.text if pipeline else {}
    found = {name: index[name] for name in wanted if index.get(name, [None])[0] is not None}
    if not found:
        raise ValueError(
            f"{folder} has none of the text encoders of this network's pipeline ({', '.join(wanted)})"
        )
    for name in found:
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"{folder / name} is missing, which {INDEX} names")
    return found


def own_side(encoder: TextEncoder | None, pipeline: Pipeline | None) -> tuple[TextSide | None, list[str]]:
    """What a run's text encoder is made of, where the pipeline takes just that; else None, and why."""
    if encoder is None or pipeline is None or not pipeline.text:
        return None, []
    try:
        if not isinstance(encoder, HasTextSide):
            raise ValueError(f"transformers has no class for a {type(encoder).__name__}")
        side = encoder.text_side()
        refuse_other_side(side, pipeline)
    except ValueError as error:
        return None, [f"this run's own text encoder is left out: {error}"]
    return side, []


def refuse_other_side(side: TextSide, pipeline: Pipeline) -> None:
    """
    Raises:
        ValueError: The pipeline makes something else of captions than the run does.
    """
    if side.arrangement != pipeline.arrangement:
        raise ValueError(f"it is {side.arrangement}, and {pipeline.class_name} takes {pipeline.arrangement}")
    named = zip(pipeline.text_encoders, side.models, pipeline.takes, strict=True)
    wrong = [
        f"{what} of {name} is {ours}, and {pipeline.class_name} takes {theirs}"
        for name, model, taken in named
        for what, ours, theirs in taken.misfits(model)
    ]
    longest, length = pipeline.longest, side.models[-1].length
    if longest is not None and length > longest:
        wrong.append(f"its length is {length}, and {pipeline.class_name} takes at most {longest}")
    if wrong:
        raise ValueError("; ".join(wrong))


def write_side(
    side: TextSide, pipeline: Pipeline, place: Path, *, max_shard_bytes: int
) -> tuple[dict[str, Any], list[str]]:
    """Write models and tokenizers; returns the components with their classes, and what a person should know."""
    written: dict[str, Any] = {}
    notes = []
    for name, text, taken in zip(pipeline.text_encoders, side.models, pipeline.takes, strict=True):
        library, class_name = pipeline.text[name]
        model = fitted(text, taken, class_name)
        model.save_pretrained(place / name, max_shard_size=max_shard_bytes)
        tokenizer = name.replace("text_encoder", "tokenizer")
        written[name] = [library, class_name]
        written[tokenizer] = [library, text.save_tokenizer(place / tokenizer)]
        if text.caution:
            notes.append(f"{tokenizer} {text.caution}; ours does not")
    return written, notes


def fitted(text: TextModel, taken: Taken, class_name: str) -> Any:
    """The model in the class, and with the layers, that a pipeline expects; its tensors are not copied."""
    model = text.model()
    unused = taken.unused_layers(text)
    asks_for_mask = taken.mask_by_config and not text.attends_padding
    if type(model).__name__ == class_name and not unused and not asks_for_mask:
        return model
    kind = getattr(importlib.import_module(type(model).__module__), class_name)
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_hidden_layers -= unused
    if asks_for_mask:
        config.use_attention_mask = True
    with torch.device("meta"):  # nothing is drawn at random that is then thrown away
        other: nn.Module = kind(config)
    # One class of CLIP has its text model inside, the other is it.
    state = {name.removeprefix("text_model."): x for name, x in model.state_dict().items()}
    wanted = {name: state[name.removeprefix("text_model.")] for name in other.state_dict()}
    other.load_state_dict(wanted, assign=True)
    return other.eval()


def check_side(encoder: TextEncoder, side: TextSide, pipeline: Pipeline, loaded: Any) -> str:
    """Ask a loaded pipeline what it makes of captions, and compare.

    Raises:
        ValueError: Something else than the run's text encoder.
    """
    for name, text in zip(pipeline.text_encoders, side.models, strict=True):
        getattr(loaded, name).to(text.dtype)  # which folders are read in is their readers' choice
    cond = encoder(list(PROBES))
    with torch.no_grad():
        answers = loaded.encode_prompt(
            prompt=list(PROBES), device="cpu", **pipeline.asks, **call_options(side, pipeline)
        )
    tolerance = max(TOLERANCES[text.dtype] for text in side.models)
    ours = {field: getattr(cond, field) for field in pipeline.answers if field}
    theirs = {field: x for field, x in zip(pipeline.answers, answers, strict=False) if field}
    furthest = max(distance(ours[field], theirs[field]) for field in ours)
    if not furthest <= tolerance:  # also where it is not a number
        raise ValueError(
            f"{pipeline.class_name} does not make of captions what the run's text encoder does: vectors differ by up "
            f"to {furthest:.2g} of their length; nothing was kept of this export; format.with_text=false leaves the "
            f"text encoders out"
        )
    return f"{pipeline.class_name}'s encode_prompt agrees within {furthest:.1g}"


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest distance of two vectors (..., D), as a share of their length; of masks, of rows (B, L)."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.float(), theirs.float()
    return float(((ours - theirs).norm(dim=-1) / ours.norm(dim=-1).clamp(min=1e-6)).max())


def check_written(side: TextSide, pipeline: Pipeline, place: Path) -> str:
    """Read the models again and compare bits, where there is no diffusers to ask.

    Raises:
        ValueError: There are other tensors in a folder.
    """
    for name, text, taken in zip(pipeline.text_encoders, side.models, pipeline.takes, strict=True):
        model = fitted(text, taken, pipeline.text[name][1])
        again = type(model).from_pretrained(place / name, local_files_only=True, dtype=text.dtype)
        state = again.state_dict()
        if wrong := [key for key, x in model.state_dict().items() if not torch.equal(x.cpu(), state[key])]:
            raise ValueError(f"{place / name} holds other values than the run in {wrong[0]}")
    return "the text encoders, read again, equal the run's bit for bit"


def call_options(side: TextSide, pipeline: Pipeline) -> dict[str, Any]:
    """What the pipeline must be told besides the prompt, to read it as the run did."""
    if pipeline.usual_length is None:
        return {}
    return {"max_sequence_length": side.models[-1].length}


def missing_text(pipeline: Pipeline, text: Mapping[str, Any]) -> list[str]:
    """What to add, where text encoders are not at hand."""
    missing = [f"{name} ({kind})" for name, (_, kind) in pipeline.text.items() if name not in text]
    if not missing:
        return []
    return [
        f"not in the folder: {', '.join(missing)}; without them {pipeline.class_name} takes "
        f"{', '.join(pipeline.told)} in place of prompts"
    ]
