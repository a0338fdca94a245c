"""``ldm <verb> key=value ...``: every verb is one function with one config of the same name.

``configs/<verb>.yaml`` holds ``_target_``, the dotted path of the function, and all its defaults. The config is
composed and checked before the function's module, and with it torch, is imported.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from ldm.commands.signatures import Parameter, signature

USAGE = """usage: ldm <verb> [key=value ...]     ldm <verb> --help     ldm <verb> --cfg job

python train.py trains, python sample.py makes pictures; everything else is a verb:
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    verb, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1]
    if verb in ("", "-h", "--help", "help"):
        print(USAGE + "\n".join(f"  {name:<12}{_summary(target)}" for name, target in verbs().items()))
        return
    from ldm.commands.errors import reported

    with reported():
        run(verb, rest)


def verbs(folder: Path | None = None) -> dict[str, str]:
    """Verb -> dotted path of its function, for every config of a command."""
    folder = folder or Path(__file__).resolve().parents[2] / "configs"
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        target = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("_target_", "")
        if target.startswith("ldm.commands."):
            found[file.stem] = target
    return found


def run(verb: str, arguments: Sequence[str]) -> Any:
    """Compose, check and call; returns what the function returns."""
    from omegaconf import OmegaConf

    from ldm.commands import compose
    from ldm.commands.messages import ConfigError, nearest
    from ldm.commands.schema import HELPERS

    known = verbs()
    if verb not in known:
        if verb == "train":
            raise ConfigError("train is no verb of ldm: python train.py experiment=<name>")
        raise ConfigError(f"there is no verb '{verb}'; {nearest(verb, known)}")
    if {"-h", "--help"} & set(arguments):
        return _help(verb, known[verb])
    show, overrides = _flags(arguments)
    found = signature(known[verb])
    parameters = found.parameters if found else {}
    of_training: list[str] = []
    if "training" in parameters:  # a command about a training: what is not its own belongs to train.yaml
        overrides, of_training = _shared_out(overrides, {*parameters} - {"training"})
    if show:
        print(OmegaConf.to_yaml(compose.compose(verb, overrides).config), end="", flush=True)
    config = compose.load(verb, overrides)
    if show:
        return None

    from hydra.utils import get_method

    values = {}
    for key in (str(key) for key in config if key not in HELPERS and key != "_target_"):
        as_it_is = key in parameters and _takes_a_config(parameters[key])
        values[f"{key}_" if keyword.iskeyword(key) else key] = (
            config[key] if as_it_is else _built(config[key])
        )
    if "training" in parameters:
        from ldm.commands.launch import checked

        values["training"] = checked(of_training)
    return get_method(known[verb])(**values)


def _shared_out(overrides: Sequence[str], own: Set[str]) -> tuple[list[str], list[str]]:
    """The overrides of a command's own keys, and those of the training it is about."""
    first = [re.split(r"[=./@]", item.lstrip("+~"))[0] for item in overrides]
    mine = [item for item, key in zip(overrides, first, strict=True) if key in own]
    return mine, [item for item, key in zip(overrides, first, strict=True) if key not in own]


def _takes_a_config(parameter: Parameter) -> bool:
    """Whether a part is handed over as its config, to be built later or written down."""
    return parameter.annotation is not None and "DictConfig" in ast.unparse(parameter.annotation)


def _built(value: Any) -> Any:
    """A config's value as a function takes it: parts are built, containers are plain lists and dicts."""
    from hydra.utils import instantiate
    from omegaconf import DictConfig, ListConfig

    return instantiate(value, _convert_="all") if isinstance(value, DictConfig | ListConfig) else value


def _flags(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether the config is to be shown, and the overrides."""
    from ldm.commands.messages import ConfigError, nearest

    show, overrides, left = False, [], list(arguments)
    while left:
        item = left.pop(0)
        if item in ("--cfg", "-c"):
            show = True
            if left and left[0] in ("job", "all"):
                left.pop(0)
        elif item.startswith("-"):
            raise ConfigError(f"there is no option '{item}'; {nearest(item, ['--help', '--cfg'])}")
        else:
            overrides.append(item)
    return show, overrides


def _summary(target: str) -> str:
    found = signature(target)
    return found.doc.splitlines()[0] if found and found.doc else ""


def _help(verb: str, target: str) -> None:
    from omegaconf import OmegaConf

    from ldm.commands import compose

    found = signature(target)
    print(f"ldm {verb} [key=value ...]\n\n{found.doc if found else ''}\n\nDefaults (configs/{verb}.yaml):\n")
    print(OmegaConf.to_yaml(compose.compose(verb, []).config), end="")


if __name__ == "__main__":
    main()
