"""Class labels in the place of captions: for class-conditional networks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.text.contract import hash_contract
from ldm.transfer import sent


class ClassLabels(nn.Module):
    """Captions that name a class -> Conditioning with ``labels``; nothing is learned.

    The empty caption is the null class, which has the number after the last. Tokens and pooled vector have no width:
    there are no words.

    Args:
        num_classes: How many classes there are. Without ``names``, captions are their numbers: "0", "1", ...
        names: Of the classes in the order of their numbers: a list, or a text file with one on each line. Captions are
            names then.

    Raises:
        ValueError: Neither is given, they disagree, or a name stands twice or is empty.
        FileNotFoundError: The file of names is not there.
    """

    def __init__(self, *, num_classes: int | None = None, names: Sequence[str] | str | None = None) -> None:
        super().__init__()
        if isinstance(names, str):
            if not Path(names).is_file():
                raise FileNotFoundError(
                    f"names={names}: there is no such file; it holds one class name on each line"
                )
            names = [
                line.strip() for line in Path(names).read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        if names is None:
            if num_classes is None or num_classes < 1:
                raise ValueError(f"num_classes={num_classes}: give the number of classes, or their names")
            names = [str(number) for number in range(num_classes)]
        if num_classes not in (None, len(names)):
            raise ValueError(f"num_classes={num_classes}, but {len(names)} names are given")
        self.numbers = {name: number for number, name in enumerate(names)}
        if len(self.numbers) < len(names) or "" in self.numbers:
            wrong = next(name for i, name in enumerate(names) if not name or name in names[:i])
            raise ValueError(f"the class name {wrong!r} is empty or stands twice in names")
        self.num_classes = len(names)
        self.width = 0
        self.pooled_width = 0
        self.length = 1
        self.contract = {"encoder": "ClassLabels", "names": list(names)}
        self.content_hash = hash_contract(self.contract)
        self.register_buffer("here", torch.empty(0), persistent=False)  # follows the module to its device
        self.here: Tensor

    def forward(self, captions: Sequence[str]) -> Conditioning:
        """Captions, B of them -> labels (B,), tokens (B, 1, 0), mask (B, 1), pooled (B, 0)."""
        device, batch = self.here.device, len(captions)
        return Conditioning(
            tokens=torch.zeros(batch, 1, 0, device=device),
            mask=torch.ones(batch, 1, dtype=torch.bool, device=device),
            pooled=torch.zeros(batch, 0, device=device),
            labels=sent(torch.tensor([self.number(caption) for caption in captions]), device),
        )

    def number(self, caption: str) -> int:
        """The label of a caption.

        Raises:
            ValueError: It names no class.
        """
        name = caption.strip()
        if not name:
            return self.num_classes
        if name not in self.numbers:
            near = difflib.get_close_matches(name, self.numbers, n=3)
            known = list(self.numbers)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"they are {', '.join(known[:4])}"
            )
            more = "" if near or len(known) <= 4 else f" and {len(known) - 4} more"
            raise ValueError(f"caption {name!r} names none of the {self.num_classes} classes; {hint}{more}")
        return self.numbers[name]
