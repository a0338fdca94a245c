"""The constructor is the schema: a composed config is checked against the signatures of what it names.

Nothing is imported and nothing is built. Each mapping with ``_target_`` must name a class or function of an allowed
package, use only its parameters, give all required ones, and give values of the annotated types. A config must not be
able to run arbitrary code: whoever sends you one cannot have ``os.system`` called by it.
"""

from __future__ import annotations

import ast
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ldm.commands import signatures
from ldm.commands.annotations import (
    ANY,
    Anything,
    Kinds,
    ListOf,
    MappingOf,
    Object,
    OneOf,
    Plain,
    Record,
    describe,
    kinds,
)
from ldm.commands.messages import ConfigError, Path, dotted, first_line, nearest, remedy, shown

# Packages whose classes and functions a config may name. Of lightning only what a training is put together from: its
# command-line tools and cloud helpers could be told to load and run other code.
ALLOWED = (
    "ldm.",
    "torch.optim.",
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "bitsandbytes.optim.",
)
HOMES = {
    "torch": "torch.optim.",
    "bitsandbytes": "bitsandbytes.optim.",
}  # where a target must really be defined
EXTRAS = {"bitsandbytes": "optimizers"}  # package -> the extra of ldm that installs it
_TOP_LEVEL = {name.split(".")[0] for name in ALLOWED}
COMMANDS = "ldm.commands."  # verbs: allowed as the root of a command's config only
HELPERS = {
    "paths": "ldm.commands.settings.Paths"
}  # beside a command's parameters, for their values to refer to
INSTRUCTIONS = {"_target_": "str", "_partial_": "bool", "_recursive_": "bool", "_convert_": "str"}


def check(
    config: DictConfig,
    *,
    record: str | None = None,
    complete: bool = True,
    allowed: tuple[str, ...] = ALLOWED,
) -> None:
    """Raise ConfigError for the first thing in ``config`` that cannot work.

    Args:
        config: The composed config, unresolved.
        record: Dotted path of the dataclass that lists its top-level keys; None where the root is itself an object
            with ``_target_``.
        complete: Ask for what has no value yet, too.
        allowed: Beginnings of targets that may be named.
    """
    checker = _Checker(config, allowed)
    if record is not None:
        checker.record(config, record, ())
    elif "_target_" in config:
        checker.object(config, (), is_root=True)
    else:
        raise ConfigError("this config has no _target_, so it says nothing that could be run")
    checker.finish()
    if complete and checker.lacking:
        raise checker.lacking[0]


class _Checker:
    """One walk over one config."""

    def __init__(self, config: DictConfig, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        self.seen: set[int] = set()
        # What interpolations lead to is reported at home, where it can be mended; what has no home (a mapping made by
        # a resolver) is looked at in the end.
        self.borrowed: list[tuple[DictConfig | ListConfig, Path, Kinds]] = []
        # What is still to be given comes after what is wrong: a misspelt key is often why another seems to lack.
        self.lacking: list[ConfigError] = []

    def finish(self) -> None:
        while self.borrowed:
            node, path, expected = self.borrowed.pop()
            if id(node) not in self.seen:
                self.value(node, expected, path, annotation="")

    def record(self, node: DictConfig, name: str, path: Path) -> None:
        signature = signatures.signature(name)
        assert signature is not None, f"{name} is not a dataclass"
        self.seen.add(id(node))
        self.keys(node, signature, path, partial=False)

    def object(self, node: DictConfig, path: Path, *, is_root: bool = False) -> None:
        """A mapping with ``_target_``."""
        self.seen.add(id(node))
        target = self.child(node, "_target_", path)
        here = (*path, "_target_")
        if not isinstance(target, str):
            raise ConfigError(
                f"{dotted(here)}: expected the dotted path of a class or function, got {shown(target)}", here
            )
        signature = self.signature(target, here, is_root=is_root)
        for key, kind in INSTRUCTIONS.items():
            if key in node and not Plain(kind).holds(self.child(node, key, path)):
                where = (*path, key)
                raise ConfigError(f"{dotted(where)}: expected {kind}, got {shown(node[key])}", where)
        partial = "_partial_" in node and node["_partial_"]
        self.keys(node, signature, path, partial=partial)

    def signature(self, target: str, here: Path, *, is_root: bool) -> signatures.Signature:
        if not target.startswith(self.allowed) or (target.startswith(COMMANDS) and not is_root):
            names = ", ".join(f"{name}*" if name.endswith(".") else name for name in self.allowed)
            raise ConfigError(f"{dotted(here)}: '{target}' is refused; a config may only build {names}", here)
        package = target.split(".")[0]
        if package in EXTRAS and signatures.load(package) is None:
            raise ConfigError(
                f"{dotted(here)}: {package} is not installed: pip install 'ldm[{EXTRAS[package]}]'", here
            )
        found = signatures.find(target)
        signature = signatures.signature(target) if found else None
        if found is None or signature is None:
            hint = nearest(target, signatures.neighbours(target)) if found is None else "name one of these"
            raise ConfigError(f"{dotted(here)}: '{target}' is no class or function; {hint}", here)
        # A name that a module merely imported (``ldm.text.learned.torch.load``) is not the module's own, and of other
        # packages only classes are wanted.
        home = HOMES.get(package, f"{package}.")
        foreign_function = (
            package != "ldm" and package in _TOP_LEVEL and not isinstance(found.node, ast.ClassDef)
        )
        if not found.dotted.startswith(home) or foreign_function:
            raise ConfigError(f"{dotted(here)}: '{target}' is refused; it leads to {found.dotted}", here)
        return signature

    def keys(self, node: DictConfig, signature: signatures.Signature, path: Path, *, partial: bool) -> None:
        """The keys of a mapping against the parameters they are for."""
        is_object = "_target_" in node
        aside = {*INSTRUCTIONS, *(() if path else HELPERS)} - {*signature.parameters} if is_object else set()
        given = [str(key) for key in node if key not in aside]
        for key in given:
            where = (*path, key)
            if key.startswith("_") and key.endswith("_"):
                message = f"{dotted(where)}: '{key}' is not used here; give every value by its name"
                raise ConfigError(message, where)
            if key not in signature.parameters and not signature.open:
                owner = f"{signature.name} has no parameter" if is_object else "there is no key"
                hint = nearest(key, signature.parameters) if signature.parameters else "it takes none"
                raise ConfigError(f"{dotted(where)}: {owner} '{key}'; {hint}", where)
        for key in given:
            parameter = signature.parameters.get(key)
            expected = ANY if parameter is None else kinds(parameter.annotation, parameter.module)
            text = ast.unparse(parameter.annotation) if parameter and parameter.annotation else ""
            self.entry(node, key, expected, (*path, key), text)
        for key in aside & HELPERS.keys() & set(map(str, node)):
            self.entry(node, key, (Record(HELPERS[key]),), (*path, key), HELPERS[key].rpartition(".")[2])
        missing = [p.name for p in signature.parameters.values() if p.required and p.name not in given]
        if missing and not partial:
            first = dotted((*path, missing[0]))
            subject = f"{dotted(path)}: {signature.name}" if path else signature.name
            message = f"{subject} also needs {', '.join(missing)}; give {first}=..."
            self.lacking.append(ConfigError(message, path, at=(*path, "_target_") if is_object else path))

    def entry(
        self, node: DictConfig | ListConfig, key: Any, expected: Kinds, path: Path, annotation: str
    ) -> None:
        """One key's value; what an interpolation leads to is put off."""
        if OmegaConf.is_missing(node, key):
            message = f"{dotted(path)} has no value yet; give {dotted(path)}=..."
            self.lacking.append(ConfigError(message, path))
            return
        try:
            value = self.child(node, key, path[:-1])
        except InterpolationToMissingValueError:
            return  # the value itself is reported where it stands
        if OmegaConf.is_interpolation(node, key) and isinstance(value, DictConfig | ListConfig):
            self.borrowed.append((value, path, expected))
            self.shape(value, expected, path, annotation)
        else:
            self.value(value, expected, path, annotation)

    def child(self, node: DictConfig | ListConfig, key: Any, path: Path) -> Any:
        try:
            return node[key]
        except InterpolationToMissingValueError:
            raise
        except OmegaConfBaseException as error:
            where = (*path, key)
            raise ConfigError(f"{dotted(where)}: {first_line(error)}", where) from error

    def shape(self, value: Any, expected: Kinds, path: Path, annotation: str) -> Any:
        """The kind among ``expected`` that ``value`` is of."""
        fitting = next((kind for kind in expected if fits(value, kind)), None)
        if fitting is None:
            wanted = annotation or " | ".join(describe(kind) for kind in expected)
            hint = remedy(dotted(path), value, expected)
            raise ConfigError(f"{dotted(path)}: expected {wanted}, got {shown(value)}{hint}", path)
        return fitting

    def value(self, value: Any, expected: Kinds, path: Path, annotation: str) -> None:
        kind = self.shape(value, expected, path, annotation)
        if not isinstance(value, DictConfig | ListConfig):
            return
        self.seen.add(id(value))
        if isinstance(value, DictConfig) and "_target_" in value:
            self.object(value, path)
        elif isinstance(value, DictConfig):
            if isinstance(kind, Record):
                return self.record(value, kind.dotted, path)
            inner = kind.value if isinstance(kind, MappingOf) else ANY
            for key in value:
                self.member(value, str(key), inner, (*path, str(key)))
        else:
            for place in range(len(value)):
                inner = kind.item(place) if isinstance(kind, ListOf) else ANY
                self.entry(value, place, inner, (*path, place), annotation="")

    def member(self, node: DictConfig, key: str, expected: Kinds, path: Path) -> None:
        """One entry of a mapping with free keys; a misspelt one shows by lacking what its neighbours have."""
        lacks_target = any(isinstance(kind, Object) for kind in expected) and isinstance(
            node[key], DictConfig
        )
        if lacks_target and "_target_" not in node[key]:
            others = [str(other) for other in node if other != key]
            raise ConfigError(f"{dotted(path)}: there is no '{key}' here; {nearest(key, others)}", path)
        self.entry(node, key, expected, path, annotation="")


def fits(value: Any, kind: object) -> bool:
    """Whether a value is of a kind, as far as can be seen without looking inside."""
    match kind:
        case Anything():
            return True
        case Plain() | OneOf():
            return kind.holds(value)
        case ListOf(length=length):
            return isinstance(value, ListConfig) and length in (None, len(value))
        case MappingOf() | Record():
            return isinstance(value, DictConfig) and "_target_" not in value
        case Object():
            return isinstance(value, DictConfig) and "_target_" in value
        case _:
            return False
