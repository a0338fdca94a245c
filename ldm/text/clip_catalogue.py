"""Which weights open_clip knows of, and where they are published."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any


@cache
def catalogue() -> Any:
    """open_clip's module ``pretrained``, without the rest of the package, which must be installed.

    The package itself imports all models, torchvision and transformers at once: up to ten seconds, for the name of a
    file. The module needs none of them.
    """
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.submodule_search_locations is not None
    shell = ModuleType("open_clip_alone")
    shell.__path__ = list(found.submodule_search_locations)
    sys.modules[shell.__name__] = shell
    return importlib.import_module(f"{shell.__name__}.pretrained")
