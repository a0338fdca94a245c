"""Prompts, from the command line or from a file, each with a negative prompt, a seed and a guidance of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.commands.messages import nearest
from ldm.sampling.request import Prompt

KEYS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "seed": (int,),
    "guidance": (int, float),
}


def read_prompts(
    prompts: Sequence[str | Mapping[str, Any]] | None, file: str | None, *, negative: str | None
) -> list[Prompt]:
    """The prompts asked for.

    Args:
        prompts: Texts, or mappings with ``prompt`` and, as wanted, ``negative``, ``seed`` and ``guidance``.
        file: A .txt with a text per line, or a .jsonl with a mapping per line, in UTF-8.
        negative: For the prompts that have none of their own.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: None or both are given, or one of them cannot be read; the message names the line.
    """
    if prompts and file:
        raise ValueError(f"prompts and prompts_file={file} are both given: leave one of the two out")
    if file is not None:
        entries = list(_lines(Path(file)))
    else:
        entries = [(f"prompts[{i}]", entry) for i, entry in enumerate(prompts or [])]
    if not entries:
        raise ValueError(
            "there are no prompts: give prompts=['a red circle','two blue squares'] or prompts_file=<file>"
        )
    return [_prompt(where, entry, negative or "") for where, entry in entries]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, text or mapping) for every line of a file that is not empty."""
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"prompts_file={path} must end in .txt (a prompt per line) or .jsonl (a mapping per line)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"prompts_file: there is no file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")  # with or without the mark that some editors put in front
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise ValueError(f"{path}:{line} is not UTF-8 text (byte 0x{byte:02x}): save it as UTF-8") from error
    # not splitlines(): JSON may hold the line separators of Unicode as they are
    texts = [(f"{path}:{number}", text.strip()) for number, text in enumerate(text.split("\n"), start=1)]
    if not any(text for _, text in texts):
        raise ValueError(f"{path} holds no prompts: it is empty")
    for where, text in texts:
        if text:
            yield where, text if path.suffix == ".txt" else _mapping(where, text)


def _mapping(where: str, line: str) -> Any:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f'{where} is no JSON ({error}); a line reads {{"prompt": "a red circle"}}'
        ) from error
    if not isinstance(entry, dict):
        raise ValueError(
            f'{where} holds {type(entry).__name__}, not a mapping; a line reads {{"prompt": "..."}}'
        )
    return entry


def _prompt(where: str, entry: str | Mapping[str, Any], negative: str) -> Prompt:
    if isinstance(entry, str):
        return Prompt(text=entry, negative=negative)
    for key, value in entry.items():
        if key not in KEYS:
            raise ValueError(f"{where}: there is no key {key!r}; {nearest(str(key), KEYS)}")
        if value is not None and (not isinstance(value, KEYS[key]) or isinstance(value, bool)):
            raise ValueError(f"{where}: {key} must be {_wanted(key)}, got {value!r}")
    if entry.get("prompt") is None:
        raise ValueError(f"{where} has no prompt")
    guidance = entry.get("guidance")
    own = entry.get("negative")
    return Prompt(
        text=entry["prompt"],
        negative=negative if own is None else own,
        seed=entry.get("seed"),
        scale=None if guidance is None else float(guidance),
    )


def _wanted(key: str) -> str:
    return {"seed": "a whole number", "guidance": "a number"}.get(key, "text")
