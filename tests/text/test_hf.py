"""Models of Hugging Face against transformers itself, from folders as it and diffusers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from ldm.needs import MissingNeeds
from ldm.text.files import PretrainedFolder, missing_tokenizer, missing_weights, wanted_files
from ldm.text.hf import Architecture, HuggingFaceText, HuggingFaceTokenizer
from ldm.text.pooling import EndToken, Mean
from tests.text.tiny import (
    CAPTIONS,
    CLIP,
    T5,
    T5_SETTINGS,
    clip_config,
    clip_tokenizer,
    hf_clip,
    save_t5,
    t5_tokenizer,
)

LENGTH = 24


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    save_t5(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text side of a pipeline of diffusers: text_encoder/ and tokenizer/."""
    folder = tmp_path_factory.mktemp("pipeline")
    hf_clip(CLIP, projected=True).save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def t5_reference(folder: Path, *, masked: bool, hidden: bool = False) -> Any:
    import transformers

    words = t5_tokenizer()(
        list(CAPTIONS), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    model = transformers.T5EncoderModel.from_pretrained(folder)
    mask = words.attention_mask if masked else None
    with torch.no_grad():
        return words, model(words.input_ids, attention_mask=mask, output_hidden_states=hidden)


def t5(folder: Path, **options: Any) -> HuggingFaceText:
    return HuggingFaceText(**{"weights": PretrainedFolder(path=str(folder)), "length": LENGTH, **options})


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attends_padding", [False, True])
def test_t5s_tokens_are_transformers(t5_folder: Path, attends_padding: bool) -> None:
    words, reference = t5_reference(t5_folder, masked=not attends_padding)
    cond = t5(t5_folder, attends_padding=attends_padding)(CAPTIONS)
    same(cond.tokens, reference.last_hidden_state)
    assert cond.mask.equal(words.attention_mask.bool()) and cond.pooled.shape == (len(CAPTIONS), 0)


def test_t5s_mean_is_over_words_only(t5_folder: Path) -> None:
    words, reference = t5_reference(t5_folder, masked=True)
    cond = t5(t5_folder, pooling=Mean())(CAPTIONS)
    for row, length in enumerate(words.attention_mask.sum(1).tolist()):
        same(cond.pooled[row], reference.last_hidden_state[row, :length].mean(0))


def test_t5s_inner_layers(t5_folder: Path) -> None:
    import transformers

    _, reference = t5_reference(t5_folder, masked=True, hidden=True)
    penultimate = reference.hidden_states[-2]
    same(t5(t5_folder, layer=-2, final_norm=False)(CAPTIONS).tokens, penultimate)
    norm = transformers.T5EncoderModel.from_pretrained(t5_folder).encoder.final_layer_norm
    same(t5(t5_folder, layer=-2)(CAPTIONS).tokens, norm(penultimate))
    same(norm(t5(t5_folder, final_norm=False)(CAPTIONS).tokens), reference.last_hidden_state)


def test_clip_from_a_pipelines_folder(pipeline: Path) -> None:
    import transformers

    words = clip_tokenizer()(
        list(CAPTIONS), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    model = transformers.CLIPTextModelWithProjection.from_pretrained(pipeline / "text_encoder")
    with torch.no_grad():
        reference = model(words.input_ids, output_hidden_states=True)
    weights = PretrainedFolder(path=str(pipeline), subfolder="text_encoder", tokenizer_subfolder="tokenizer")
    options: dict[str, Any] = {"weights": weights, "length": 77, "attends_padding": True}
    last = HuggingFaceText(**options, pooling=EndToken(projected=True))(CAPTIONS)
    same(last.tokens, reference.last_hidden_state)
    same(last.pooled, reference.text_embeds)
    plain = HuggingFaceText(**options, layer=-2, final_norm=False, pooling=EndToken())(CAPTIONS)
    same(plain.tokens, reference.hidden_states[-2])
    same(plain.pooled, model.text_model(words.input_ids).pooler_output)


def test_a_whole_clip_gives_its_text_side(tmp_path: Path) -> None:
    import transformers

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config=clip_config(CLIP).to_dict(), vision_config=vision, projection_dim=CLIP.projection
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    encoder = HuggingFaceText(
        weights=PretrainedFolder(path=str(tmp_path)), length=77, pooling=EndToken(), attends_padding=True
    )
    words = clip_tokenizer()(["a cat"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        reference = model.text_model(words.input_ids)
    same(encoder(["a cat"]).tokens, reference.last_hidden_state)


def test_any_other_encoder_works_too(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=300,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    save_t5(tmp_path, tokenizer_in="words")
    weights = PretrainedFolder(path=str(tmp_path), subfolder="model", tokenizer_subfolder="words")
    encoder = HuggingFaceText(weights=weights, length=LENGTH)
    words = t5_tokenizer()(["a cat"], padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        reference = model(words.input_ids, attention_mask=words.attention_mask).last_hidden_state
    same(encoder(["a cat"]).tokens, reference)
    with pytest.raises(ValueError, match=r"length=33 is more than the 32 positions"):
        HuggingFaceText(weights=weights, length=33)
    with pytest.raises(ValueError, match="last norm of BertModel"):
        HuggingFaceText(weights=weights, length=LENGTH, layer=-2)
    with pytest.raises(ValueError, match="bert has no text projection"):
        HuggingFaceText(weights=weights, length=LENGTH, pooling=Mean(projected=True))


# --- architecture and weights ------------------------------------------------------------------------------------


def test_a_stated_architecture_must_be_the_folders(t5_folder: Path) -> None:
    assert t5(t5_folder, architecture=T5).contract == t5(t5_folder).contract
    other = Architecture(model_type="t5", settings={**T5_SETTINGS, "num_layers": 24})
    with pytest.raises(ValueError, match="num_layers=3, not 24"):
        t5(t5_folder, architecture=other)


def test_random_weights_and_shapes_need_no_files() -> None:
    cond = HuggingFaceText(weights=None, architecture=T5, length=LENGTH)(CAPTIONS)
    assert cond.tokens.shape == (len(CAPTIONS), LENGTH, T5_SETTINGS["d_model"])
    nowhere = PretrainedFolder(repo="nobody/nothing", path="/nowhere")
    with torch.device("meta"):
        encoder = HuggingFaceText(weights=nowhere, architecture=T5, length=LENGTH, dtype="bfloat16")
        assert encoder(["a cat"]).tokens.is_meta
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in encoder.parameters())
    with pytest.raises(ValueError, match="needs its architecture"):
        HuggingFaceText(weights=None, length=LENGTH)


def test_a_tokenizer_of_another_model_is_refused(t5_folder: Path) -> None:
    words = HuggingFaceTokenizer(folder=PretrainedFolder(path=str(t5_folder)))
    assert words.needs()[1].found == str(t5_folder)
    small = Architecture(model_type="t5", settings={**T5_SETTINGS, "vocab_size": 50})
    with pytest.raises(ValueError, match=f"{len(t5_tokenizer())} tokens and the text model knows 50"):
        HuggingFaceText(weights=None, architecture=small, tokenizer=words, length=LENGTH)


def test_weights_are_read_in_their_own_precision(t5_folder: Path) -> None:
    encoder = t5(t5_folder, dtype="bfloat16")
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    cond = encoder(CAPTIONS)
    assert cond.tokens.dtype == torch.float32
    reference = t5(t5_folder)(CAPTIONS).tokens
    assert 0 < (cond.tokens - reference).norm() < 0.1 * reference.norm()


def test_sentencepiece_files_are_tokenizers_too(tmp_path: Path) -> None:
    """As google/t5-v1_1-xxl has it, without a tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["a red cat and the blue dog", "two cats on a green mat"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=40, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    )
    words = HuggingFaceTokenizer(folder=PretrainedFolder(path=str(tmp_path)))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for caption in ("a red cat", "the green dog and two cats", ""):
        assert words([caption], 50).ids[0] == [*reference.encode(caption), 1]


# --- where files are found ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of Hugging Face."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_that_is_not_here_says_where_it_was_looked_for_and_how_to_bring_it(hub: Path) -> None:
    with pytest.raises(MissingNeeds) as caught:
        HuggingFaceText(weights=PretrainedFolder(repo="google/t5-v1_1-xxl"), architecture=T5, length=LENGTH)
    message = str(caught.value)
    for part in ("google/t5-v1_1-xxl", str(hub), "hf download", "path=<folder>", "allow_download=true"):
        assert part in message, message


def test_a_repository_in_the_cache_is_read_from_there(hub: Path, t5_folder: Path) -> None:
    folder = hub / "models--google--t5-v1_1-small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("0" * 40)).symlink_to(t5_folder, target_is_directory=True)
    weights = PretrainedFolder(repo="google/t5-v1_1-small")
    assert all(need.is_met for need in weights.needs())
    encoder = HuggingFaceText(weights=weights, architecture=T5, length=LENGTH)
    assert encoder.contract == t5(t5_folder).contract
    assert not PretrainedFolder(repo="google/t5-v1_1-small", revision="other").needs()[1].is_met


def test_only_with_permission_something_is_downloaded(
    hub: Path, t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = huggingface_hub.snapshot_download

    def download(repo: str, *, revision: str | None, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return str(t5_folder) if asked else real(repo, revision=revision, local_files_only=True)
        asked.append((repo, sorted(options["allow_patterns"])))
        return str(t5_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "tokenizer.json"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: files)
    weights = PretrainedFolder(repo="google/t5-v1_1-small", allow_download=True)
    assert all(need.fetched for need in weights.needs()[1:]) and not asked
    HuggingFaceText(weights=weights, architecture=T5, length=LENGTH)
    assert asked == [("google/t5-v1_1-small", ["config.json", "model.safetensors", "tokenizer.json"])]


def test_of_a_repository_only_what_is_read_is_downloaded() -> None:
    files = [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    wanted = wanted_files(files, folders=("text_encoder", "tokenizer"), variant=None)
    assert wanted == [files[1], files[6], files[7], files[3]]
    half = wanted_files(files, folders=("text_encoder", "tokenizer"), variant="fp16")
    assert half[-1] == "text_encoder/model.fp16.safetensors" and files[3] not in half
    shard = "text_encoder_3/model-00001-of-00002.safetensors"
    assert wanted_files(files, folders=("text_encoder_3",), variant=None) == [shard]
    assert wanted_files(["pytorch_model.bin"], folders=("",), variant=None) == ["pytorch_model.bin"]


def test_incomplete_folders_name_what_they_lack(tmp_path: Path) -> None:
    assert missing_weights(tmp_path) == ["config.json"]
    (tmp_path / "config.json").write_text("{}")
    assert missing_weights(tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert missing_weights(tmp_path) == ["model.safetensors"], "a pointer that git left is no weights"
    whole = b"0" * 2048
    (tmp_path / "pytorch_model.bin").write_bytes(whole)
    assert missing_weights(tmp_path) == []
    (tmp_path / "pytorch_model.bin").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / shards["a"]).write_bytes(whole)
    assert missing_weights(tmp_path) == [shards["b"]]
    (tmp_path / shards["b"]).write_bytes(whole)
    assert missing_weights(tmp_path) == []
    assert missing_weights(tmp_path, "fp16") == ["model.fp16.safetensors"]
    (tmp_path / "vocab.json").write_text("{}")
    assert missing_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    assert not missing_tokenizer(tmp_path)


def test_a_source_that_names_nothing() -> None:
    with pytest.raises(ValueError, match="give the path of the model's folder, or repo"):
        PretrainedFolder()
    need = PretrainedFolder(path="/nowhere").needs()[1]
    assert not need.is_met and need.looked_in == ("/nowhere",)
