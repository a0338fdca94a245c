"""Where a key stands: file and line, for error messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Source:
    """A YAML file that took part in a config, and the place its content was put at."""

    path: Path
    package: str  # dotted; "" for the top level
    folder: Path  # of all configs

    @property
    def shown(self) -> str:
        """For messages: relative to the folder that the configs' folder lies in."""
        return str(self.path.relative_to(self.folder.parent))


def line_of(source: Source, names: Sequence[str]) -> int | None:
    """The line at which a file gives the key ``names``; None where it does not."""
    package = source.package.split(".") if source.package else []
    if list(names[: len(package)]) != package or len(names) == len(package):
        return None
    node = yaml.compose(source.path.read_text(encoding="utf-8"), yaml.SafeLoader)
    line = None
    for name in names[len(package) :]:
        if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
            node = node.value[int(name)]
            line = node.start_mark.line
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((key, value) for key, value in pairs if key.value == name), None)
        if pair is None:
            return None
        line, node = pair[0].start_mark.line, pair[1]
    return None if line is None else line + 1


def choice_place(files: Sequence[Path], group: str, choice: str, folder: Path) -> str:
    """The first of ``files`` whose defaults list asks for a group's choice, as "file:line"; "" where none does."""
    for file in files:
        node = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader) if file.is_file() else None
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            if key.value != "defaults":
                continue
            for item in value.value:
                for name, chosen in item.value if isinstance(item, yaml.MappingNode) else []:
                    if (
                        name.value.split()[-1].lstrip("/").endswith(group.split("/")[-1])
                        and chosen.value == choice
                    ):
                        return f"{file.relative_to(folder.parent)}:{name.start_mark.line + 1}"
    return ""
