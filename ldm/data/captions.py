"""What is said about a picture: which of its texts a visit is given, and how that text is changed on the way.

A sample may hold several texts: its ``txt``, and every field of its json that is a text or a list of texts. Which are
used, and how often, is a mapping from field to weight. ``CaptionRecipe`` draws one of them for each visit and may put
it into a template or change the order of its tags. The empty caption stays empty throughout: it is the null condition.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ldm.randomness import address

MISSING = ("skip", "empty", "error")
PLACE = "{caption}"  # where a template takes the caption

Fields = Mapping[str, float]
"""Field ("txt", or one of the json) -> how often it is drawn, in proportion to the others."""

Texts = Mapping[str, Sequence[str]]
"""Field -> the texts of one sample, none of them empty."""


@dataclass(frozen=True, kw_only=True)
class CaptionRecipe:
    """One of a sample's texts for each visit, and what is done to it.

    Every choice is tied to (seed, its purpose, key, visit). A field is drawn by weight among those that the sample
    has, then one of the field's texts, then a template.

    Args:
        missing: What becomes of a sample without any text in the fields: "skip" leaves it out, "empty" gives it the
            empty caption, the null condition, and "error" stops before training.
        templates: Sentences with ``{caption}`` in them, of which each visit draws one; null for the caption alone.
        shuffle_tags: Change the order of a caption's tags at each visit.
        tag_dropout: Share of the tags that a visit leaves out, in [0, 1).
        keep_tags: So many tags at the beginning stay first and are never left out.
        tag_separator: What stands between tags.

    Raises:
        ValueError: An option that is none, or a template without ``{caption}``.
    """

    missing: str = "skip"
    templates: Sequence[str] | None = None
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0
    tag_separator: str = ","

    def __post_init__(self) -> None:
        if self.missing not in MISSING:
            raise ValueError(
                f"caption_recipe.missing is '{self.missing}'; it may be one of {', '.join(MISSING)}"
            )
        if self.templates is not None and not self.templates:
            raise ValueError("caption_recipe.templates is an empty list; give null for captions as they are")
        for template in self.templates or ():
            if PLACE not in template:
                raise ValueError(
                    f"caption_recipe.templates: '{template}' has no {PLACE}, where the caption would stand"
                )
        if not 0 <= self.tag_dropout < 1:
            raise ValueError(
                f"caption_recipe.tag_dropout={self.tag_dropout} is a share of the tags, from 0 to below 1"
            )
        if self.keep_tags < 0 or not self.tag_separator:
            raise ValueError(
                "caption_recipe.keep_tags counts tags, from 0, and caption_recipe.tag_separator is not empty"
            )

    @property
    def changes_tags(self) -> bool:
        """Whether a caption's words are another each time, so that what is made of them cannot be made beforehand."""
        return self.shuffle_tags or self.tag_dropout > 0

    @property
    def as_written(self) -> bool:
        """Whether a sample's only text is its caption at every visit, with nothing to draw."""
        return self.templates is None and not self.changes_tags

    def draw(self, texts: Texts, fields: Fields, *, seed: int, key: str, visit: int) -> str:
        """The caption of a visit; empty where the sample has no text in the fields."""
        said = [texts.get(name, ()) for name in fields]
        place = self.place([len(of_field) for of_field in said], fields, seed=seed, key=key, visit=visit)
        return self.caption(
            [text for of_field in said for text in of_field], place, seed=seed, key=key, visit=visit
        )

    def place(self, counts: Sequence[int], fields: Fields, *, seed: int, key: str, visit: int) -> int:
        """Which of ``every`` a visit is given, for a sample with so many texts in each of the fields."""
        text, total = 0, sum(counts)
        if total > 1:
            weights = [
                weight if count else 0.0 for weight, count in zip(fields.values(), counts, strict=True)
            ]
            several = sum(weight > 0 for weight in weights) > 1
            field = _weighted(weights, chance(seed, "caption field", key, visit) if several else 0.0)
            text = sum(counts[:field]) + int(chance(seed, "caption", key, visit) * counts[field])
        if self.templates is None or not total:
            return text
        template = int(chance(seed, "caption template", key, visit) * len(self.templates))
        return text * len(self.templates) + template

    def caption(self, said: Sequence[str], place: int, *, seed: int, key: str, visit: int) -> str:
        """The caption at a place, from the sample's texts in the fields; see ``place``."""
        if not said:
            return ""
        text, template = divmod(place, len(self.templates)) if self.templates else (place, 0)
        caption = said[text]
        if self.changes_tags:
            caption = self._tags_anew(caption, seed, key, visit)
        return self.templates[template].replace(PLACE, caption) if self.templates else caption

    def every(self, said: Sequence[str]) -> list[str]:
        """All captions that a sample with these texts in the fields can be given, at their places.

        Raises:
            ValueError: There are too many to list, for tags come in another order each time.
        """
        if self.changes_tags:
            raise ValueError(
                "captions whose tags are shuffled or left out anew at each visit cannot be encoded beforehand: set "
                "caption_recipe.shuffle_tags=false and caption_recipe.tag_dropout=0, or encode text while training"
            )
        templates = self.templates or (PLACE,)
        return [template.replace(PLACE, text) for text in said for template in templates] or [""]

    def _tags_anew(self, caption: str, seed: int, key: str, visit: int) -> str:
        tags = [tag for part in caption.split(self.tag_separator) if (tag := part.strip())]
        first, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        # A number per tag and visit: which are left out does not depend on whether they are also shuffled.
        if self.tag_dropout:
            stay = [chance(seed, f"tag {i} stays", key, visit) >= self.tag_dropout for i in range(len(rest))]
            if not first and not any(stay) and rest:  # a caption of nothing would be the null condition
                stay[int(chance(seed, "tag that stays", key, visit) * len(rest))] = True
            rest = [tag for tag, kept in zip(rest, stay, strict=True) if kept]
        if self.shuffle_tags:
            places = sorted(range(len(rest)), key=lambda i: address(seed, f"place of tag {i}", key, visit))
            rest = [rest[i] for i in places]
        between = self.tag_separator if self.tag_separator[-1].isspace() else f"{self.tag_separator} "
        return between.join(first + rest)


AS_WRITTEN = CaptionRecipe()


def chance(seed: int, purpose: str, key: str, visit: int) -> float:
    """A number in [0, 1) for one choice about one sample; the same in every process, at every restart."""
    return (address(seed, purpose, key, visit) >> 10) / 2**53


def as_fields(caption_field: str | Mapping[str, float]) -> dict[str, float]:
    """``caption_field`` of a config -> field and weight: one field's name, or a mapping with several.

    Raises:
        ValueError: No field, or a weight that is not positive.
    """
    fields = {caption_field: 1.0} if isinstance(caption_field, str) else dict(caption_field)
    if not fields or not all(weight > 0 for weight in fields.values()):
        raise ValueError(
            f"caption_field={caption_field} must name a field, or several with weights above 0: "
            f"{{txt: 0.2, captions: 0.8}}"
        )
    return {str(name): float(weight) for name, weight in fields.items()}


def texts_of(txt: bytes | None, meta: bytes | None) -> dict[str, list[str]]:
    """Everything that is said about a sample, by field: "txt", and each text or list of texts in its json.

    What is not UTF-8 becomes replacement signs, texts that are empty count as none, and so does a damaged json.
    """
    found = {} if txt is None else {"txt": [txt.decode("utf-8", "replace").removeprefix("\ufeff")]}
    if meta is None:  # most samples by far
        text = found["txt"][0].strip() if found else ""
        return {"txt": [text]} if text else {}
    for name, value in _json_fields(meta):
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            found.setdefault(name, texts)
    stripped = {name: [text.strip() for text in texts] for name, texts in found.items()}
    return {name: said for name, texts in stripped.items() if (said := [text for text in texts if text])}


def number_of(meta: bytes | None, field: str) -> float | None:
    """A number in a sample's json; None where it has none."""
    value = dict(_json_fields(meta)).get(field)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _json_fields(meta: bytes | None) -> Iterator[tuple[str, object]]:
    if meta is not None:
        try:
            fields = json.loads(meta)
        except ValueError:  # also where it is not UTF-8
            return
        if isinstance(fields, dict):
            yield from fields.items()


def _weighted(weights: Sequence[float], u: float) -> int:
    """The place that u in [0, 1) falls on, where each has a stretch as long as its weight."""
    left, last = u * sum(weights), 0
    for place, weight in enumerate(weights):
        if weight > 0:
            if left < weight:
                return place
            left, last = left - weight, place
    return last  # rounding, at the very end
