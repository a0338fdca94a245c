"""The text contract: all that an embedding depends on besides its caption, as plain data.

It is saved with a run and in its checkpoints, and in a cache of embeddings. A network that was trained on penultimate
layers of 77 tokens makes pictures of last layers of 120 too, only worse ones: what changed must be refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Contract = Mapping[str, Any]
SAMPLES = 1024


def hash_contract(contract: Contract) -> str:
    """The contract's name: SHA-256, independent of the order of its entries."""
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights that takes seconds for billions of them; "" on the meta device, which has none.

    Of each tensor the sum of its bits as integers, exact and so the same on any number of threads, which every single
    change shows in, and SHA-256 of 1,024 of its elements, which tells one order from another.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        x = weights[name].detach()
        if x.is_meta:
            return ""
        flat = x.cpu().contiguous().flatten()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        if flat.numel():
            size = flat.element_size()
            bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
            digest.update(str(int(bits.sum(dtype=torch.int64))).encode())
            digest.update(bits[:: max(1, len(bits) // SAMPLES)].contiguous().numpy().tobytes())
    return digest.hexdigest()


def differences(then: Contract, now: Contract, where: str = "") -> list[str]:
    """Where two contracts differ, in words: "length was 77 and is 120"."""
    found = []
    for key in dict.fromkeys((*then, *now)):
        a, b = then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key} was {_shown(a)} and is {_shown(b)}")
    return found


def refuse_other(then: Contract, now: Contract, *, what: str) -> None:
    """Refuse embeddings of another kind than ``what`` was made with.

    Raises:
        ValueError: The contracts differ; up to four differences are named.
    """
    if wrong := differences(_plain(then), _plain(now)):
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{what} was made with another text encoder: {'; '.join(wrong[:4])}{more}. Give text_encoder=... as it was"
        )


def _plain(contract: Contract) -> Contract:
    """As it is read back from JSON, where tuples are lists."""
    return json.loads(json.dumps(contract))


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef"):
        return value[:12]
    return str(value)
