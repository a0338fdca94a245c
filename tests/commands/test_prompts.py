from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm.commands.prompts import read_prompts
from ldm.sampling.request import Prompt


def test_texts_and_mappings_on_the_command_line() -> None:
    given = ["a", {"prompt": "b", "negative": "", "seed": 3, "guidance": 4}, {"prompt": "c", "seed": None}]
    assert read_prompts(given, None, negative="n") == [
        Prompt(text="a", negative="n"),
        Prompt(text="b", negative="", seed=3, scale=4.0),  # an empty one of its own stays empty
        Prompt(text="c", negative="n"),
    ]


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffein roter Kreis\r\n\n  zwei Käfer \n三\u2028个".encode())
    texts = [prompt.text for prompt in read_prompts(None, str(file), negative=None)]
    assert texts == ["ein roter Kreis", "zwei Käfer", "三\u2028个"]


def test_a_jsonl_file_has_a_mapping_per_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "guidance": 2.5}\n\n{"prompt": "", "negative": "b", "seed": 0}\n')
    assert read_prompts(None, str(file), negative=None) == [
        Prompt(text="a", scale=2.5),
        Prompt(text="", negative="b", seed=0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", r"p\.txt holds no prompts: it is empty"),
        ("p.txt", b" \n\n", "is empty"),
        ("p.jsonl", b"\n", "is empty"),
        ("p.txt", b"a\n\xe4\n", r"p\.txt:2 is not UTF-8 text \(byte 0xe4\): save it as UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\nb\n', r"p\.jsonl:2 is no JSON"),
        ("p.jsonl", b'["a"]\n', r"p\.jsonl:1 holds list, not a mapping"),
        ("p.jsonl", b'{"promt": "a"}\n', r"p\.jsonl:1: there is no key 'promt'; did you mean 'prompt'\?"),
        ("p.jsonl", b'{"negative": "a"}\n', r"p\.jsonl:1 has no prompt"),
        ("p.jsonl", b'{"prompt": "a", "seed": 1.5}\n', "seed must be a whole number, got 1.5"),
        ("p.jsonl", b'{"prompt": "a", "seed": true}\n', "seed must be a whole number, got True"),
        ("p.jsonl", b'{"prompt": "a", "guidance": "4"}\n', "guidance must be a number, got '4'"),
        ("p.jsonl", b'{"prompt": 4}\n', "prompt must be text, got 4"),
        ("p.csv", b"a", r"must end in \.txt .* or \.jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(None, str(tmp_path / name), negative=None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.txt"):
        read_prompts(None, str(tmp_path / "absent.txt"), negative=None)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_prompts(None, str(tmp_path / ".txt" / "x.txt"), negative=None)


@pytest.mark.parametrize("prompts", [None, []])
def test_no_prompts_are_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match="there are no prompts"):
        read_prompts(prompts, None, negative=None)


def test_prompts_and_a_file_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="leave one of the two out"):
        read_prompts(["a"], "p.txt", negative=None)


def test_a_mistake_on_the_command_line_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]: there is no key 'sed'; did you mean 'seed'"):
        read_prompts(["a", {"prompt": "b", "sed": 1}], None, negative=None)
