"""CLIP's text side against open_clip itself, from the files that open_clip writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from ldm.needs import MissingNeeds
from ldm.text.clip import ClipText, ClipTokenizer, NamedClip, OpenClipWeights
from ldm.text.pooling import EndToken
from ldm.text.tokenizers import PROBES
from tests.text.tiny import CAPTIONS, CLIP, QUICK_CLIP, open_clip_model

TAG = {"model": "ViT-L-14", "tag": "openai"}
REPO = "timm/vit_large_patch14_clip_224.openai"


@pytest.fixture(scope="module")
def whole() -> Any:
    return open_clip_model(CLIP)


@pytest.fixture(scope="module")
def file(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(whole.state_dict(), path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of Hugging Face, and no way to the internet."""

    def no_internet(*args: object, **options: object) -> None:
        raise AssertionError("something was about to be downloaded")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_internet)
    monkeypatch.setenv("HOME", str(tmp_path))  # where open_clip keeps what it gets by URL
    return tmp_path / "hub"


def from_file(file: Path, **options: Any) -> ClipText:
    options = {"architecture": CLIP, "padding": 0, "pooling": EndToken(projected=True)} | options
    return ClipText(weights=OpenClipWeights(path=str(file)), **options)


def test_pooled_vectors_and_last_layer_are_open_clips(whole: Any, file: Path) -> None:
    ids = open_clip.get_tokenizer("ViT-L-14")(list(CAPTIONS))
    with torch.no_grad():
        reference = whole.encode_text(ids)
        layers = whole.forward_intermediates(
            text=ids, text_indices=2, normalize_intermediates=True, text_output_fmt="NLC"
        )
    cond = from_file(file)(CAPTIONS)
    torch.testing.assert_close(cond.pooled, reference, rtol=1e-5, atol=1e-5)
    penultimate, last = layers["text_intermediates"]
    torch.testing.assert_close(cond.tokens, last, rtol=1e-5, atol=1e-5)
    before = from_file(file, layer=-2)(CAPTIONS)
    torch.testing.assert_close(before.tokens, penultimate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(before.pooled, reference, rtol=1e-5, atol=1e-5)
    assert cond.mask.sum(1).tolist() == (ids != 0).sum(1).tolist()


def test_without_the_final_norm_layers_are_as_they_come_out_of_their_block(whole: Any, file: Path) -> None:
    ids = open_clip.get_tokenizer("ViT-L-14")(list(CAPTIONS))
    with torch.no_grad():
        plain = whole.forward_intermediates(text=ids, text_indices=2, text_output_fmt="NLC")
    for layer, reference in zip((-2, -1), plain["text_intermediates"], strict=True):
        tokens = from_file(file, layer=layer, final_norm=False)(CAPTIONS).tokens
        torch.testing.assert_close(tokens, reference, rtol=1e-5, atol=1e-5)


def test_quick_gelu_is_another_model() -> None:
    whole = open_clip_model(QUICK_CLIP)
    encoder = ClipText(architecture=QUICK_CLIP, weights=None, padding=0, pooling=EndToken(projected=True))
    text = {k: x for k, x in whole.state_dict().items() if k in encoder.tower.state_dict()}
    encoder.tower.load_state_dict(text)
    ids = open_clip.get_tokenizer("ViT-L-14")(list(CAPTIONS))
    with torch.no_grad():
        torch.testing.assert_close(encoder(CAPTIONS).pooled, whole.encode_text(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "text.", "module.", "module.text."])
def test_every_layout_of_a_checkpoint_is_read(whole: Any, file: Path, tmp_path: Path, prefix: str) -> None:
    """As trained (module.), with the text side as a part of its own (text.), inside a training's checkpoint."""
    state = {f"{prefix}{name}": x for name, x in whole.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    assert from_file(tmp_path / "epoch_1.pt").contract == from_file(file).contract


def test_torchscript_archives_are_read_as_well(whole: Any, file: Path, tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding, self.transformer = whole.token_embedding, whole.transformer
            self.ln_final, self.text_projection = whole.ln_final, whole.text_projection
            self.positional_embedding = whole.positional_embedding

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.token_embedding(ids)

    traced = torch.jit.trace(Archive(), torch.zeros(1, 77, dtype=torch.int64))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    (tmp_path / "ViT-L-14.pt").write_bytes(buffer.getvalue())
    assert from_file(tmp_path / "ViT-L-14.pt").contract == from_file(file).contract


def test_tokens_are_open_clips_for_plain_and_for_difficult_captions() -> None:
    reference = open_clip.get_tokenizer("ViT-L-14")
    captions = [*CAPTIONS, *PROBES, "it's 3.14 &amp; <b>", "tabs\tand\x7f", "x" * 500, "\u201cquotes\u201d"]
    rows = ClipTokenizer()(captions, 77).ids
    for row, wanted in zip(rows, reference(captions).tolist(), strict=True):
        assert row + [0] * (77 - len(row)) == wanted


def test_plain_captions_are_cleaned_as_open_clip_does() -> None:
    """The short way round ftfy gives the same for every printable ASCII text without an ampersand."""
    printable = "".join(chr(i) for i in range(32, 127) if chr(i) != "&")
    generator = torch.Generator().manual_seed(0)
    library = SimpleTokenizer()
    for _ in range(300):
        letters = torch.randint(len(printable), (30,), generator=generator).tolist()
        caption = "".join(printable[i] for i in letters)
        assert ClipTokenizer()([caption], 1000).ids[0][1:-1] == library.encode(caption), repr(caption)


def test_longer_captions_lose_their_end_and_keep_the_end_token() -> None:
    ids, lengths = ClipTokenizer()(["dog " * 100], 10)
    assert len(ids[0]) == 10 and ids[0][-1] == 49407 and lengths == [102]


def test_named_models_have_open_clips_sizes() -> None:
    sizes = NamedClip(name="ViT-B-32-quickgelu").sizes()
    assert (sizes.width, sizes.heads, sizes.layers, sizes.projection) == (512, 8, 12, 512)
    assert sizes.quick_gelu and sizes.context_length == 77
    with pytest.raises(ValueError, match="no model 'ViT-B-33'"):
        NamedClip(name="ViT-B-33").sizes()
    with pytest.raises(ValueError, match=r"is not CLIP's own .*HuggingFaceText"):
        NamedClip(name="ViT-B-16-SigLIP").sizes()


def test_weights_that_do_not_fit_are_refused_by_name(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not of this architecture: transformer\.resblocks\.2"):
        from_file(file, architecture=type(CLIP)(width=32, heads=4, layers=2, projection=16))
    with pytest.raises(ValueError, match=r"it lacks transformer\.resblocks\.3"):
        from_file(file, architecture=type(CLIP)(width=32, heads=4, layers=4, projection=16))
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "pictures.safetensors")
    with pytest.raises(ValueError, match="holds no text side"):
        from_file(tmp_path / "pictures.safetensors")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 78}, "more than the 77 positions"),
        ({"length": 1}, "no room for a word"),
        ({"layer": 0}, "layer=0 must be between -3"),
        ({"layer": -4}, "layer=-4 must be between -3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"padding": 49408}, "padding=49408 is none of the model's 49408 tokens"),
        ({"width": 64}, "width=64 is stated, but this text encoder has width=32"),
        ({"pooled_width": 8}, "pooled_width=8 is stated"),
        (
            {"architecture": type(CLIP)(width=8, heads=1, layers=3, projection=4, vocab_size=100)},
            "49408 tokens",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipText(**{"architecture": CLIP, "weights": None, **options})


# --- where weights are found -------------------------------------------------------------------------------------


def put_into_cache(hub: Path, repo: str, file: Path) -> None:
    """As huggingface_hub lays its cache out."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / file.name).write_bytes(file.read_bytes())


def test_a_tag_that_is_not_here_says_where_it_was_looked_for_and_how_to_bring_it(hub: Path) -> None:
    with pytest.raises(MissingNeeds) as caught:
        ClipText(architecture=CLIP, weights=OpenClipWeights(**TAG))
    message = str(caught.value)
    for part in (
        "ViT-L-14 openai",
        REPO,
        str(hub),
        "ViT-L-14.pt",
        "hf download",
        "path=<file>",
        "allow_download",
    ):
        assert part in message, message


def test_a_tag_in_the_hubs_cache_is_read_from_there(hub: Path, file: Path) -> None:
    put_into_cache(hub, REPO, file)
    encoder = ClipText(
        architecture=CLIP, weights=OpenClipWeights(**TAG), padding=0, pooling=EndToken(projected=True)
    )
    assert encoder.contract == from_file(file).contract


def test_a_tag_in_open_clips_own_cache_is_read_from_there(hub: Path, whole: Any, file: Path) -> None:
    place = hub.parent / ".cache" / "clip" / "ViT-L-14.pt"
    place.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), place)
    weights = OpenClipWeights(**TAG)
    assert weights.needs()[1].found == str(place)
    assert set(weights.read()) == set(from_file(file).tower.state_dict())


def test_only_with_permission_something_is_downloaded(
    hub: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, name: str) -> str:
        asked.append((repo, name))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    weights = OpenClipWeights(**TAG, allow_download=True)
    assert weights.needs()[1].fetched and not asked
    weights.read()
    assert asked == [(REPO, "open_clip_model.safetensors")]


def test_a_download_that_fails_says_so_and_how_to_do_without(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, name: str) -> str:
        raise ConnectionError("no route to host\nand a page more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(
        MissingNeeds, match=r"failed \(ConnectionError: no route to host\); where there is internet"
    ):
        OpenClipWeights(**TAG, allow_download=True).read()


def test_a_named_file_is_the_only_place(hub: Path, file: Path) -> None:
    weights = OpenClipWeights(path="/nowhere/clip.pt", **TAG, allow_download=True)
    with pytest.raises(MissingNeeds, match=r"/nowhere/clip\.pt is missing"):
        weights.read()


def test_unknown_tags_and_sources_that_name_nothing(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights 'opnai' of 'ViT-L-14'.*its tags: openai"):
        OpenClipWeights(model="ViT-L-14", tag="opnai").needs()
    with pytest.raises(ValueError, match="give the path of a checkpoint"):
        OpenClipWeights(model="ViT-L-14")
