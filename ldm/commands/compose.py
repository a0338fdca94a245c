"""From a command line to a checked config: Hydra composes, the schema checks, and every error is one line.

Hydra's habits stay (groups, ``experiment=``, ``+x=``, ``~x``, sweeps) but for one: a plain ``network.depth=8`` need not
stand in a YAML file beforehand; it must be a parameter of what is built, which the schema sees to.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ldm.commands.messages import ConfigError, dotted, nearest
from ldm.commands.override_lists import with_quotes
from ldm.commands.provenance import Source, choice_place, line_of
from ldm.commands.schema import check

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MAX_CHECKED_JOBS = (
    32  # of a sweep, before its first job starts; each job is checked again when its turn comes
)
Keys = tuple[str | int, ...]
HYDRA_TARGETS = ("hydra._internal.", "hydra.experimental.callbacks.", "hydra_plugins.")


@dataclass(frozen=True)
class Composed:
    """A config, with what it was made of."""

    config: DictConfig
    given: Sequence[Keys]  # the keys given on the command line
    name: str  # of the primary config
    overrides: Sequence[str]  # as Hydra saw them
    folder: Path  # where the configs are
    searched: Sequence[Any]  # where Hydra looked
    choices: Mapping[str, str | None]  # Hydra's, of every group
    on_line: Mapping[str, str]  # those that were made on the command line

    def place(self, path: Keys) -> str:
        """Where a key got its value: "command line", "configs/experiment/x.yaml:7", or "" where nothing says so."""
        names = tuple(str(part) for part in path)
        if any(names[: len(keys)] == keys or keys[: len(names)] == names for keys in self.given):
            return "command line"
        lines = ((source, line_of(source, names)) for source in reversed(self.sources))
        return next((f"{source.shown}:{line}" for source, line in lines if line is not None), "")

    @cached_property
    def chosen(self) -> dict[str, str]:
        """Group -> choice, where it was made on the command line or is not the default of the primary config."""
        primary = yaml.safe_load((self.folder / f"{self.name}.yaml").read_text(encoding="utf-8"))
        entries = [entry for entry in primary.get("defaults", []) if isinstance(entry, dict)]
        default = {group: choice for entry in entries for group, choice in entry.items()}
        other = {
            group: choice
            for group, choice in self.choices.items()
            if choice and default.get(group, choice) != choice
        }
        return {**other, **self.on_line}

    @cached_property
    def sources(self) -> list[Source]:
        """The files, later ones win. Hydra goes through all defaults again for it, so only an error asks."""
        with initialize_config_dir(str(self.folder), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list(self.name, list(self.overrides), RunMode.RUN).defaults
        return _sources(self.searched, defaults)


def load(
    name: str,
    overrides: Sequence[str],
    *,
    folder: Path = CONFIGS,
    record: str | None = None,
    later: Mapping[str, Any] | None = None,
    amend: Callable[[Composed], None] | None = None,
) -> DictConfig:
    """Compose ``<folder>/<name>.yaml`` with overrides and check it.

    Args:
        name: The primary config's name.
        overrides: As given on the command line.
        folder: Where the configs are.
        record: Dotted path of the dataclass that lists the top-level keys; None where the root has ``_target_``.
        later: Stand-ins for top-level values that may be null now and are known when the work starts.
        amend: Changes the config before it is checked.

    Raises:
        ConfigError: With a one-line message that names the key, where it stands, and the nearest valid one.
    """
    composed = compose(name, overrides, folder=folder)
    if amend is not None:
        amend(composed)
    try:
        examine(composed.config, record=record, later=later)
    except ConfigError as error:
        place = composed.place(error.at) if error.at else ""
        raise ConfigError(f"{error.message} ({place})" if place else error.message, error.path) from error
    return composed.config


def examine(config: DictConfig, *, record: str | None, later: Mapping[str, Any] | None = None) -> None:
    """Check a composed config; see ``load``."""
    complete = config.copy()
    for key, value in (later or {}).items():
        if key in complete and complete[key] is None:
            complete[key] = value
    check(complete, record=record)


def compose(name: str, overrides: Sequence[str], *, folder: Path = CONFIGS) -> Composed:
    """Let Hydra compose; its errors become ConfigError."""
    if not (folder / f"{name}.yaml").is_file():
        raise ConfigError(f"there is no config {folder / name}.yaml; is ldm installed with pip install -e?")
    with initialize_config_dir(str(folder), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = list(groups_of(loader))
        parsed = parse(overrides)
        freed = [free(override, groups) for override in parsed]
        try:
            config = hydra_compose(name, freed, return_hydra_config=True)
        except MissingConfigException as error:
            raise _unknown_choice(error, name, overrides, folder) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if deletion := re.match(r"Could not delete from config. '(.*)' does not exist", str(error)):
                keys = _flat(hydra_compose(name, [item for item in freed if not item.startswith("~")]))
                hint = nearest(deletion[1], keys)
                raise ConfigError(f"~{deletion[1]}: there is no such key; {hint} (command line)") from error
            raise ConfigError(_plain(error)) from error
    _check_hydra(config)
    searched, choices = config.hydra.runtime.config_sources, config.hydra.runtime.choices
    on_line = {
        item.key_or_group: str(item.value())
        for item in parsed
        if item.key_or_group in groups and item.value()
    }
    with open_dict(config):
        del config["hydra"]
    return Composed(
        config=config,
        given=[_keys(override) for override in parsed if override.key_or_group not in groups],
        name=name,
        overrides=freed,
        folder=folder,
        searched=searched,
        choices=choices,
        on_line=on_line,
    )


def _sources(searched: Sequence[Any], defaults: Sequence[Any]) -> list[Source]:
    """The files behind a defaults list, in its order; Hydra's own left out."""
    folders = [Path(source.path) for source in searched if source.schema == "file"]
    found = []
    for item in defaults:
        file = f"{item.config_path}.yaml"
        folder = next((folder for folder in folders if (folder / file).is_file()), None)
        if folder is not None:
            found.append(Source(path=folder / file, package=item.package or "", folder=folder))
    return found


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's override grammar, one at a time so that an error names the one it is in."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as error:
            if quoted := with_quotes(override):
                parsed += parse([quoted])
                continue
            raise ConfigError(f"cannot read '{override}' as key=value; quote special characters") from error
    return parsed


def free(override: Override, groups: Sequence[str]) -> str:
    """The override as Hydra shall see it: plain values may also be new keys, for the schema to judge."""
    line = override.input_line or ""
    key = override.key_or_group
    if override.type != OverrideType.CHANGE or override.package is not None or key in groups:
        return line
    if key.startswith(("hydra.", "hydra/")):
        return line
    if "/" in key:
        raise ConfigError(f"{key}: there is no config group '{key}'; {nearest(key, groups)} (command line)")
    return f"++{line}"


def _keys(override: Override) -> Keys:
    return tuple(part for part in re.split(r"[.\[\]]+", override.key_or_group) if part)


def expand(overrides: Sequence[str], *, folder: Path = CONFIGS) -> tuple[list[str], list[list[str]]]:
    """The overrides as Hydra shall see them, and those of each job of a sweep, at most ``MAX_CHECKED_JOBS``."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        groups = list(groups_of(GlobalHydra.instance().config_loader()))
        parsed = parse(overrides)
        freed = [free(override, groups) for override in parsed]
        choices = [_choices(override) for override in parsed]
    combinations = itertools.islice(itertools.product(*choices), MAX_CHECKED_JOBS)
    return freed, [list(combination) for combination in combinations]


def _choices(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if override.is_interval_sweep():  # drawn from by an optimizing sweeper
        ends = override.value()
        return [f"{override.get_key_element()}={end}" for end in (ends.start, ends.end)]  # type: ignore[union-attr]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def groups_of(loader: ConfigLoader, parent: str = "") -> Iterator[str]:
    """All config groups but Hydra's own, such as "diffusion/weighting"."""
    # Not loader.list_groups: for each folder it copies all sources first, which took a second for ours.
    assert isinstance(loader, ConfigLoaderImpl)
    for group in loader.repository.get_group_options(parent, ObjectType.GROUP):
        name = f"{parent}/{group}" if parent else group
        if name != "hydra":
            yield name
            yield from groups_of(loader, name)


def _flat(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys of a config, dotted."""
    for key in node:
        name = f"{prefix}{key!s}"
        yield name
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_none():
            yield from _flat(child, f"{name}.")


def _unknown_choice(
    error: MissingConfigException, name: str, overrides: Sequence[str], folder: Path
) -> ConfigError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if (group, choice) == ("hydra/launcher", "submitit_slurm"):
        return ConfigError(
            "hydra/launcher=slurm: hydra-submitit-launcher is not installed: pip install 'ldm[slurm]'"
        )
    given = [item.partition("=") for item in overrides]
    if any(
        key.lstrip("+").split("@")[0] == group
        and choice in [one.strip() for one in value.strip("[]").split(",")]
        for key, _, value in given
    ):
        place = "command line"
    else:
        chosen = [folder / key / f"{value}.yaml" for key, _, value in given]
        place = choice_place([folder / f"{name}.yaml", *chosen], group, choice, folder)
    # Of a list of choices Hydra does not tell the options.
    options = error.options or sorted(file.stem for file in (folder / group).glob("*.yaml"))
    hint = nearest(choice, options)
    message = f"{group}: there is no choice '{choice}'; {hint}" if group else f"there is no config '{choice}'"
    return ConfigError(f"{message} ({place})" if place else message)


def _plain(error: Exception) -> str:
    """Hydra's message as one line."""
    text = str(error) or str(error.__cause__)
    if ambiguous := re.match(r"Ambiguous value for argument '\+*(.*)'", text):
        key, _, value = ambiguous[1].partition("=")
        return f"{key} is given several values, '{value}': add -m to sweep over them, or write [{value}] for a list"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:2])


def _check_hydra(config: DictConfig) -> None:
    """Hydra's own part of a config can name things to call as well (launchers, callbacks, log handlers)."""

    def walk(node: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                here = (*path, str(key))
                handler = key == "class" and not str(value).startswith(("logging.", "colorlog."))
                if key == "()" or handler or (key == "_target_" and not str(value).startswith(HYDRA_TARGETS)):
                    raise ConfigError(f"{dotted(here)}: '{value}' is refused; Hydra's own parts only")
                walk(value, here)
        elif isinstance(node, list):
            for place, value in enumerate(node):
                walk(value, (*path, place))

    walk(OmegaConf.to_container(config.hydra, resolve=False), ("hydra",))
