"""An exported folder is loaded by diffusers' pipelines, and they make of it the pictures that we make."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from torch import Tensor

from ldm.commands.second_reader import DiffusersReader
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning
from ldm.interop.diffusers_format import Diffusers, absent, decoded
from ldm.interop.formats import Model
from ldm.interop.pipelines import OTHERS, STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.samplers import Euler
from tests.interop import tiny

PIPELINES = {p.class_name: p for p in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, *OTHERS)}
PIXELS = 2 * tiny.SIDE
STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Path, list[str]]]:
    """Every kind of network, exported and checked."""
    made = {}
    for name, kind in tiny.KINDS.items():
        model, folder = tiny.model(kind), tmp_path_factory.mktemp("exports") / name
        Diffusers().write(model, folder)
        made[name] = (model, folder, Diffusers().check(model, folder, DiffusersReader()))
    return made


def ours(
    model: Model, cond: Conditioning, uncond: Conditioning | None, scale: float, times: Tensor
) -> Tensor:
    """Normalised latents by our sampler: DDIM with eta 0, which on the rectified flow is Euler's method."""
    diffusion = Diffusion(
        schedule=model.schedule,
        parameterization=model.parameterization,
        time_sampler=Uniform(),
        weighting=Unweighted(),
    )
    guidance = Unguided() if scale == 1 else ClassifierFree(scale=scale)
    denoise = guidance(diffusion, model.network, cond, uncond)
    with torch.no_grad():
        return Euler()(denoise, model.schedule, tiny.noise(), times, noise=lambda step: torch.empty(0))


def told(cond: Conditioning, uncond: Conditioning, *, pooled: bool, masks: bool) -> dict[str, Tensor]:
    """A conditioning as the pipelines take it."""
    arguments = {"prompt_embeds": cond.tokens, "negative_prompt_embeds": uncond.tokens}
    if pooled:
        arguments |= {"pooled_prompt_embeds": cond.pooled, "negative_pooled_prompt_embeds": uncond.pooled}
    if masks:
        arguments |= {
            "prompt_attention_mask": cond.mask.long(),
            "negative_prompt_attention_mask": uncond.mask.long(),
        }
    return arguments


def times_of(scheduler: Any) -> Tensor:
    """Where the pipeline stopped: our times, for schedules that tell the network 1000 t."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas
    return torch.cat([scheduler.timesteps / 1000, torch.zeros(1)])


@pytest.mark.parametrize("name", tiny.KINDS)
def test_what_was_written_says_the_same_to_both_readers(name: str, folders: Any) -> None:
    _, _, findings = folders[name]
    assert [finding.split(" agrees within ")[0] for finding in findings] == [
        "what was written, read again,",
        "the autoencoder, read again,",
        f"diffusers' {PIPELINES[name].network_class}",
        "diffusers' AutoencoderKL",
    ]


@pytest.mark.parametrize("name", [name for name in tiny.KINDS if name not in ("FluxPipeline", "DiTPipeline")])
def test_pipelines_make_the_latents_that_we_make(name: str, folders: Any) -> None:
    """The same embeddings, noise, guidance and steps."""
    model, folder, _ = folders[name]
    pipeline = DiffusersReader().pipeline(folder, name, absent(folder, PIPELINES[name]))
    pipeline.set_progress_bar_config(disable=True)
    sizes = torch.tensor([[PIXELS, PIXELS, 0, 0, PIXELS, PIXELS]] * 2, dtype=torch.float32)
    cond = replace(tiny.conditioning(), sizes=sizes)
    uncond = replace(
        cond, tokens=cond.tokens.flip(0) * 0.5, pooled=cond.pooled.flip(0), mask=cond.mask.flip(0)
    )
    options = (
        {"use_resolution_binning": False, "negative_prompt": None} if name == "PixArtAlphaPipeline" else {}
    )
    theirs = pipeline(
        **told(
            cond, uncond, pooled=name.startswith("StableDiffusion") and name[15] != "P", masks=bool(options)
        ),
        **options,
        guidance_scale=3.0,
        num_inference_steps=STEPS,
        latents=tiny.noise(),
        height=PIXELS,
        width=PIXELS,
        output_type="latent",
    ).images
    made = ours(model, cond, uncond, 3.0, times_of(pipeline.scheduler))
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(made, theirs, rtol=0, atol=1e-3)


def test_flux_makes_the_latents_that_we_make(folders: Any) -> None:
    model, folder, _ = folders["FluxPipeline"]
    pipeline = DiffusersReader().pipeline(folder, "FluxPipeline", absent(folder, PIPELINES["FluxPipeline"]))
    pipeline.set_progress_bar_config(disable=True)
    cond = replace(tiny.conditioning(), guidance=torch.full((2,), 2.5))
    theirs = pipeline(
        prompt_embeds=cond.tokens,
        pooled_prompt_embeds=cond.pooled,
        guidance_scale=2.5,
        num_inference_steps=STEPS,
        latents=rearrange(tiny.noise(), "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
        height=PIXELS,
        width=PIXELS,
        output_type="latent",
    ).images
    made = ours(model, cond, None, 1.0, times_of(pipeline.scheduler))
    theirs = rearrange(theirs, "b (h w) (c p q) -> b c (h p) (w q)", h=tiny.SIDE // 2, p=2, q=2)
    torch.testing.assert_close(made, theirs, rtol=0, atol=1e-3)


def test_dit_makes_the_pictures_that_we_make(folders: Any) -> None:
    """Its pipeline gives no latents, but takes a generator: the pictures are compared."""
    model, folder, _ = folders["DiTPipeline"]
    pipeline = DiffusersReader().pipeline(folder, "DiTPipeline", absent(folder, PIPELINES["DiTPipeline"]))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.get_label_ids(["owl", "cat"]) == [2, 0]
    theirs = pipeline(
        class_labels=[2, 0],
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    cond = replace(tiny.conditioning(), labels=torch.tensor([2, 0]))
    pictures = decoded(model, ours(model, cond, None, 1.0, times_of(pipeline.scheduler)))
    torch.testing.assert_close((pictures / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-3)


def test_a_unet_trained_by_flow_matching_runs_in_the_stable_diffusion_pipeline(tmp_path: Path) -> None:
    flow = tiny.KINDS["FluxPipeline"]
    model = tiny.model(tiny.Kind(tiny.unet, flow.schedule, flow.parameterization))
    Diffusers().write(model, tmp_path / "out")
    pipeline = DiffusersReader().pipeline(
        tmp_path / "out", "StableDiffusionPipeline", absent(tmp_path / "out", STABLE_DIFFUSION)
    )
    pipeline.set_progress_bar_config(disable=True)
    cond = tiny.conditioning()
    theirs = pipeline(
        prompt_embeds=cond.tokens,
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        latents=tiny.noise(),
        height=PIXELS,
        width=PIXELS,
        output_type="latent",
    ).images
    # That scheduler tells the network whole thousandths: so must we, to make the same.
    sigmas, indices = pipeline.scheduler.sigmas, pipeline.scheduler.timesteps
    told_instead = dict(zip(sigmas.tolist(), (indices / 1000).tolist(), strict=False))
    network = model.network

    def rounded(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return network(x, torch.tensor([told_instead[float(one)] for one in t]), cond)

    made = ours(replace(model, parts={"network": rounded}), cond, None, 1.0, sigmas)
    torch.testing.assert_close(made, theirs, rtol=0, atol=1e-3)
    assert float((indices / 1000 - sigmas[:-1]).abs().max()) <= 1e-3


def test_text_encoders_at_hand_are_copied_and_the_readme_says_what_is_missing(tmp_path: Path) -> None:
    published = tmp_path / "published"
    (published / "tokenizer").mkdir(parents=True)
    (published / "tokenizer" / "vocab.json").write_text("{}")
    index = {"_class_name": "X", "tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": [None, None]}
    (published / "model_index.json").write_text(json.dumps(index))
    model = tiny.model(tiny.KINDS["StableDiffusionPipeline"])
    out = tmp_path / "out"
    notes = Diffusers(text_encoders=str(published)).write(model, out)
    assert (out / "tokenizer" / "vocab.json").is_file()
    written = json.loads((out / "model_index.json").read_text())
    assert written["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert written["text_encoder"] == [None, None]
    readme = (out / "README.md").read_text()
    assert 'from_pretrained("<this folder>", text_encoder=None)' in readme
    assert any("text_encoder (CLIPTextModel)" in note for note in notes) and notes[-1] in readme
    with pytest.raises(ValueError, match="none of the text encoders"):
        Diffusers(text_encoders=str(published)).write(tiny.model(tiny.KINDS["DiTPipeline"]), tmp_path / "dit")


def test_a_scaling_that_pipelines_know_is_left_to_them(tmp_path: Path) -> None:
    """As of published autoencoders: their weights stay what they were."""
    model = tiny.model(tiny.KINDS["FluxPipeline"], mean=(0.1,) * 4, std=(2.0,) * 4)
    Diffusers().write(model, tmp_path / "flux")
    config = json.loads((tmp_path / "flux/vae/config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"], config["use_quant_conv"]) == (0.5, 0.1, False)
    unet = tiny.model(tiny.KINDS["StableDiffusionPipeline"], mean=(0.1,) * 4, std=(2.0,) * 4)
    Diffusers().write(unet, tmp_path / "unet")  # whose pipeline knows no shift
    config = json.loads((tmp_path / "unet/vae/config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"], config["use_quant_conv"]) == (1.0, 0.0, True)


def test_an_autoencoder_that_diffusers_has_not_is_left_out_with_its_reason(tmp_path: Path) -> None:
    from ldm.nn.autoencoder import AutoencoderKL

    folding = AutoencoderKL(latent_channels=4, channels=[8], blocks_per_level=1, num_groups=4, patch_size=2)
    model = tiny.model(tiny.KINDS["StableDiffusionPipeline"], autoencoder=folding)
    notes = Diffusers().write(model, tmp_path / "out")
    assert any("the autoencoder is left out" in note and "patch_size=2" in note for note in notes)
    findings = Diffusers().check(model, tmp_path / "out", DiffusersReader())
    assert len(findings) == 2
    pipeline = DiffusersReader().pipeline(
        tmp_path / "out", "StableDiffusionPipeline", ["vae", "text_encoder", "tokenizer"]
    )
    assert isinstance(pipeline.unet, diffusers.UNet2DConditionModel) and pipeline.vae is None


def spoil(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        first = max(tensors, key=lambda key: tensors[key].numel())
        tensors[first] = tensors[first] + 0.1
        save_file(tensors, folder / name)

    return change


@pytest.mark.parametrize(
    ("file", "who"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "what was written, read again,"),
        ("vae/diffusion_pytorch_model.safetensors", "the autoencoder, read again,"),
    ],
)
def test_the_check_notices_weights_that_are_not_the_runs(file: str, who: str, tmp_path: Path) -> None:
    model = tiny.model(tiny.KINDS["StableDiffusionPipeline"])
    Diffusers().write(model, tmp_path / "out")
    spoil(file)(tmp_path / "out")
    with pytest.raises(ValueError, match=f"{who} does not say what the run's network says"):
        Diffusers().check(model, tmp_path / "out", None)


def test_large_weights_are_written_in_shards_that_both_readers_join(tmp_path: Path) -> None:
    model = tiny.model(tiny.KINDS["FluxPipeline"])
    Diffusers(max_shard_bytes=20_000).write(model, tmp_path / "out")
    assert len(list((tmp_path / "out/transformer").glob("*-of-*.safetensors"))) > 2
    assert len(Diffusers().check(model, tmp_path / "out", DiffusersReader())) == 4


def test_what_no_pipeline_does_is_refused_by_name(tmp_path: Path) -> None:
    schedules = {name: kind.schedule for name, kind in tiny.KINDS.items()}
    epsilon = tiny.KINDS["DiTPipeline"].parameterization
    flow_on_cosine = tiny.Kind(
        tiny.unet, schedules["StableDiffusionXLPipeline"], tiny.KINDS["FluxPipeline"].parameterization
    )
    with pytest.raises(ValueError, match="no scheduler of diffusers does Flow with Cosine"):
        Diffusers().write(tiny.model(flow_on_cosine), tmp_path / "a")
    with pytest.raises(ValueError, match="do flow matching, not Epsilon with VPLinear"):
        Diffusers().write(
            tiny.model(tiny.Kind(tiny.mmdit, schedules["DiTPipeline"], epsilon)), tmp_path / "b"
        )
    masked = tiny.model(tiny.KINDS["StableDiffusion3Pipeline"])
    masked.network.context_mask = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="context_mask=true"):
        Diffusers().write(masked, tmp_path / "c")


def text_side(folder: Path) -> None:
    """A tiny CLIP with a vocabulary of letters, as a pipeline's folder keeps it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=tiny.WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def test_with_text_encoders_at_hand_the_pipeline_takes_prompts(tmp_path: Path) -> None:
    text_side(tmp_path / "published")
    model = tiny.model(tiny.KINDS["StableDiffusionPipeline"])
    notes = Diffusers(text_encoders=str(tmp_path / "published")).write(model, tmp_path / "out")
    assert not any("not in the folder" in note for note in notes)
    assert absent(tmp_path / "out", STABLE_DIFFUSION) == []
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "latents": tiny.noise(1), "output_type": "pt"}
    size = {"height": PIXELS, "width": PIXELS}
    first, second = (pipeline(prompt, **options, **size).images for prompt in ("a cat", "dogs"))
    assert first.shape == (1, 3, PIXELS, PIXELS)
    assert not torch.equal(first, second)
