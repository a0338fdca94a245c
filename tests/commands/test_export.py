"""From a training to other tools and back: ``ldm export``, ``ldm import``, ``init_from``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.codecs.kl import KLCodec
from ldm.commands.launch import launch
from ldm.commands.load import load_run
from ldm.commands.main import run
from ldm.commands.messages import ConfigError
from ldm.interop.diffusers_format import Diffusers
from ldm.interop.folder import read_component
from ldm.interop.native import read_parts
from tests.commands.places import working_in
from tests.interop import tiny

SMALL = ["trainer=cpu", "data.batch_size=4", "num_images=8", "run_id=one"]
VAE = [
    "experiment=shapes_vae",
    *SMALL,
    "network.channels=[8,8,8,8]",
    "network.encoder_channels=[8,8,8,8]",
    "network.num_groups=4",
    "network.patch_size=1",
    "callbacks.validate.num_images=8",
]
MMDIT = [
    "experiment=shapes_dit",
    *SMALL,
    "network=mmdit_small",
    "network.depth=2",
    "network.width=24",
    "network.num_heads=2",
    "text_encoder.width=24",
    "text_encoder.num_buckets=64",
    "task.num_steps=2",
    "callbacks.validate.num_images=8",
    "callbacks.samples.prompts=[a red circle]",
]
SHAPE = [
    *(item for item in MMDIT if item.startswith("network")),
    "network.qk_norm=false",
]  # as the experiment says
DIT = [
    "network=dit_s_2",
    "network.width=24",
    "network.depth=2",
    "network.num_heads=2",
    "network.num_classes=3",
    "network.frequency_shift=1.0",
    "network.norm3_eps=1e-5",
    "network.out_channels=8",
    "network.positions.base_size=4",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an autoencoder's run and a denoiser's, and the denoiser exported twice."""
    folder = tmp_path_factory.mktemp("exports")
    with working_in(folder, num_train=8, num_val=4):
        launch(VAE)
        launch(MMDIT)
        run("export", ["run=shapes_dit", "out=theirs"])
        run("export", ["run=shapes_dit", "out=ours", "format=safetensors"])
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def test_the_averaged_weights_are_written_unless_the_others_are_asked_for(here: Path) -> None:
    for weights in ("ema", "online"):
        if weights == "online":
            run("export", ["run=shapes_dit", "out=online", "format=safetensors", "weights=online"])
        written = read_parts(here / ("ours" if weights == "ema" else "online") / "weights.safetensors")
        module = load_run("shapes_dit", weights=weights).module
        assert written.parts.keys() == {"network", "text_encoder"}
        assert same(written.parts["network"], module.network.state_dict())
        assert written.codec_hash == module.codec.content_hash
    ema, online = (read_parts(here / out / "weights.safetensors") for out in ("ours", "online"))
    assert not same(ema.parts["network"], online.parts["network"])


def test_a_folder_for_diffusers_holds_the_runs_network(here: Path) -> None:
    assert {path.name for path in (here / "theirs").iterdir()} == {
        "transformer",
        "vae",
        "scheduler",
        "model_index.json",
        "README.md",
    }
    network = read_component(here / "theirs/transformer")
    assert same(network.state_dict(), load_run("shapes_dit").module.network.state_dict())
    assert "ema weights of shapes_dit/one after 8 images" in (here / "theirs/README.md").read_text()


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(here: Path) -> None:
    with pytest.raises(FileExistsError, match="theirs is there already"):
        run("export", ["run=shapes_dit", "out=theirs"])
    with pytest.raises(ValueError, match=r"comfyui|one file"):
        run("export", ["run=shapes_dit", "out=folder", "format=comfyui"])
    with pytest.raises(ValueError, match="is no denoiser"):
        run("export", ["run=shapes_vae", "out=vae"])
    with pytest.raises(FileNotFoundError):
        run("export", ["run=shapes_dit", "out=half", "format.text_encoders=nowhere"])
    assert not [path for path in here.iterdir() if path.name.startswith((".tmp", "folder", "half", "vae"))]


def test_weights_alone_are_no_run_and_it_says_what_they_are(here: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'ours' is no run: it holds weights alone; .* init_from=ours"
    ):
        run("export", ["run=ours", "out=x"])
    with pytest.raises(FileNotFoundError, match=r"it is a pipeline of diffusers; ldm import from=theirs"):
        run("export", ["run=theirs", "out=x"])
    with pytest.raises(FileNotFoundError, match=r"'data' is no run: it has no config\.yaml"):
        run("export", ["run=data", "out=x"])


def test_a_misspelt_key_is_answered_by_the_verbs_name_and_the_nearest_key(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"import has no parameter 'form'; did you mean 'from'\?"):
        run("import", ["+form=theirs", "from=theirs", "out=x"])
    with pytest.raises(ConfigError, match=r"did you mean '(image_size|out)'\?"):
        run("import", ["from=theirs", "image_siz=8", "out=x"])


def test_an_unknown_format_is_refused_before_any_work(here: Path) -> None:
    with pytest.raises(ConfigError, match="there is no choice 'onnx'"):
        run("export", ["run=shapes_dit", "out=x", "format=onnx"])


def test_training_begins_with_what_was_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch([*MMDIT, "name=again", "init_from=ours", "optimizer.lr=1e-12"])
    assert "begins with network and text_encoder of ours" in capsys.readouterr().out
    module = load_run("again", weights="online").module
    for name, tensor in load_run("shapes_dit").module.network.state_dict().items():
        torch.testing.assert_close(module.network.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_weights_of_something_else_are_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        launch([*MMDIT, "name=wrong", "init_from=ours", "network.width=36"])
    error = capsys.readouterr().err
    assert re.search(r"init_from: ours does not fit network, a MMDiT: .* is \(24,\) and not \(36,\)", error)
    assert len(error.strip().splitlines()) == 1 and not (here / "runs/wrong").exists()


def test_what_was_exported_is_imported_again(here: Path) -> None:
    run("import", ["from=theirs", "out=imported"])
    weights = read_parts(here / "imported/weights.safetensors")
    module = load_run("shapes_dit").module
    assert same(weights.parts["network"], module.network.state_dict())
    codec = KLCodec(path=str(here / "imported/autoencoder.safetensors"))
    assert codec.content_hash == weights.codec_hash
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(codec.decode(x), module.codec.decode(x), rtol=1e-4, atol=1e-4)


def test_an_import_is_held_against_the_network_that_is_named(here: Path) -> None:
    shape = [*SHAPE, "text_encoder=learned_small"]
    with pytest.raises(ValueError, match="attention_head_dim=12, not 6"):
        run("import", ["from=theirs", "out=x", *shape, "text_encoder.width=24", "network.num_heads=4"])
    with pytest.raises(ValueError, match="holds a SD3Transformer2DModel, here called MMDiT"):
        run("import", ["from=theirs", "out=x", "network=sd15"])
    with pytest.raises(
        ValueError, match="a LearnedTextEncoder learns with the network and starts from nothing"
    ):
        run("import", ["from=theirs", "out=x", *shape, "text_encoder.width=24", "image_size=64"])
    with pytest.raises(FileNotFoundError, match="there is no folder or file nowhere"):
        run("import", ["from=nowhere", "out=x"])
    assert not (here / "x").exists() and not (here / ".tmp-x").exists()


def test_a_single_file_is_imported_by_its_layout(here: Path) -> None:
    run("export", ["run=shapes_dit", "out=single.safetensors", "format=comfyui"])
    widths = ["network.context_width=24", "network.pooled_width=24"]
    run("import", ["from=single.safetensors", "out=from_single", *SHAPE, *widths])
    weights = read_parts(here / "from_single/weights.safetensors")
    assert same(weights.parts["network"], load_run("shapes_dit").module.network.state_dict())
    assert weights.codec_hash == ""  # this small autoencoder has no place in such a file
    with pytest.raises(ValueError, match="has no config that says what network it is of"):
        run("import", ["from=single.safetensors", "out=x"])
    with pytest.raises(ValueError, match="holds nothing of a DiT"):
        run("import", ["from=single.safetensors", "out=x", *DIT])


def test_published_weights_are_sampled_from(here: Path) -> None:
    """A class-conditional DiT needs no text encoder to be trained: the import is a run like any other."""
    model = tiny.model(tiny.KINDS["DiTPipeline"])
    Diffusers().write(model, here / "published")
    labels = ["text_encoder=labels", "text_encoder.num_classes=3"]
    with pytest.raises(ValueError, match="its scheduler has noise levels by betas, no flow matching"):
        run("import", ["from=published", "out=x", *DIT, *labels])
    run("import", ["from=published", "out=runs/dit/published", *DIT, *labels, "diffusion=ddpm"])
    loaded = load_run("dit/published")
    assert same(loaded.module.network.state_dict(), model.network.state_dict())
    assert loaded.module.latent_size == (8, 8)
    run_sample = ["run=runs/dit/published", "prompts=['0','2']", "num_steps=2", "out=pictures", "device=cpu"]
    run("sample", run_sample)
    pictures = [path for path in (here / "pictures").glob("*.png") if not path.name.startswith("grid")]
    assert len(pictures) == 2 and Image.open(pictures[0]).size == (16, 16)
    run("export", ["run=dit/published", "out=republished"])
    again = read_component(here / "republished/transformer")
    assert same(again.state_dict(), model.network.state_dict())
