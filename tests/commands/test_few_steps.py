"""Few-step training by its commands: from a finished run to one that needs one or a few network calls."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.commands.guide import check_training
from ldm.commands.launch import checked, launch
from ldm.commands.load import load_run
from ldm.commands.main import run
from ldm.commands.messages import ConfigError
from ldm.commands.train import built
from ldm.interfaces import Batch
from ldm.interop.native import read_parts
from ldm.sampling.request import Request
from ldm.training.checkpoint import foreign_entries
from tests.commands.places import checkpoint, working_in

SMALL = ["trainer=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "data.batch_size=4"]
VAE = [
    "experiment=shapes_vae",
    *SMALL,
    "network.channels=[16,16]",
    "network.encoder_channels=[16,16]",
    "num_images=8",
    "callbacks.validate.num_images=8",
]
DENOISER = [
    *SMALL,
    "optimizer.lr=0.02",
    "lr_schedule.warmup_images=1",
    "text_encoder.num_buckets=64",
    "num_images=24",
    "task.num_steps=2",
    "callbacks.validate.num_images=24",
    "callbacks.samples.prompts=[a red circle]",
]
DIT = ["experiment=shapes_dit", *DENOISER, "network.depth=1", "network.width=64", "network.num_heads=1"]
UNET = [
    "name=unet",
    "data=shapes_latents",
    "codec.path=runs/shapes_vae/last/autoencoder.safetensors",
    "text_encoder=learned_small",
    *DENOISER,
    "diffusion=ddpm",
    "network=unet_small",
    "network.channels=[16,32]",
    "network.transformer_depth=[0,1]",
    "network.num_heads=[1,2]",
    "network.num_groups=4",
]
EVERY = [
    "num_images=16",
    "optimizer.lr=0.01",
    "lr_schedule.warmup_images=1",
    "callbacks.validate.num_images=8",
    "callbacks.checkpoints.every_num_images=8",
    "callbacks.samples.every_num_images=8",
    *SMALL,
]
LCM = ["task=lcm", "task.teacher=shapes_dit", "name=lcm", *EVERY]
MEANFLOW = ["task=meanflow", "task.teacher=shapes_dit", "name=meanflow", *EVERY]
BOTH = pytest.mark.parametrize("few", [LCM, MEANFLOW], ids=["lcm", "meanflow"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with pictures, an autoencoder, a denoiser, and two of few steps that learned from it."""
    folder = tmp_path_factory.mktemp("few_steps")
    with working_in(folder, num_train=20, num_val=6):
        launch([*VAE, "run_id=whole"])
        launch([*DIT, "run_id=whole"])
        launch([*LCM, "run_id=whole"])
        launch([*MEANFLOW, "run_id=whole"])
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def losses(run: str, column: str = "train/loss") -> list[float]:
    with Path("runs", run, "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@BOTH
def test_the_teachers_parts_are_taken_over_and_single_values_can_change(here: Path, few: list[str]) -> None:
    config = checked([*few, "data.batch_size=8", "optimizer.lr=0.5", "network/attention=math"])
    assert (config.network.depth, config.network.width) == (1, 64)
    assert config.network.qk_norm is False, "as the teacher's experiment says, not as the network's file"
    assert config.network.guidance == 2.0, "as the task says"
    assert config.network.attention._target_.endswith("MathAttention")
    assert config.text_encoder.num_buckets == 64 and config.codec.path.endswith("autoencoder.safetensors")
    assert config.diffusion.time_sampler.law.mean == 0.5
    assert config.data.caption_field == "captions" and config.data.batch_size == 8
    assert config.optimizer.lr == 0.5
    assert config.task.sample_posterior is False
    assert list(config.callbacks.samples.prompts) == ["a red circle"]
    assert config.task.teacher == "runs/shapes_dit/whole", "last may be another run tomorrow"


@BOTH
def test_the_student_begins_as_its_teacher(here: Path, few: list[str]) -> None:
    config = checked(few)
    config.run_id = "x"
    module = built(config.task)
    assert module.prepare(anew=True) == "learns from runs/shapes_dit/whole and begins with its weights"
    teacher = load_run("shapes_dit").module
    assert all(float(p.abs().max()) > 0 for p in teacher.network.patch_out.parameters()), "it says something"
    told = module.text_encoder(["a red circle", "two blue squares"])
    from_teacher = teacher.text_encoder(["a red circle", "two blue squares"])
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.9])
    expected = teacher.diffusion.predict(teacher.network, x, t, from_teacher)
    for numbers in ({}, {"guidance": torch.tensor([1.0, 3.0]), "span": torch.tensor([0.2, 0.0])}):
        found = module.diffusion.predict(module.network, x, t, replace(told, **numbers))
        assert torch.equal(found.x0, expected.x0) and torch.equal(found.eps, expected.eps)
    with pytest.raises(ValueError, match="trainer=fsdp is not for few-step training"):
        check_training(module, sharded=True)
    module.train()
    assert not module.teacher.network.training
    assert not any(p.requires_grad for p in module.teacher.parameters())


@BOTH
def test_a_run_trains_and_leaves_what_every_run_does(here: Path, few: list[str]) -> None:
    name = next(item for item in few if item.startswith("name=")).removeprefix("name=")
    folder = Path("runs", name, "whole")
    assert (folder / "finished.json").is_file()
    assert len(list((folder / "samples").glob("*.png"))) >= 2
    assert len(losses(f"{name}/whole")) == 4 and len(losses(f"{name}/whole", "val/loss")) == 2
    saved = checkpoint(f"{name}/whole")
    assert list(foreign_entries(saved)) == []
    assert sorted(saved["ema"]) == ["network", "text_encoder"]
    assert not any(key.startswith(("teacher.", "codec.")) for key in saved["state_dict"])
    assert len(saved["teacher"]) == 64
    before = load_run("shapes_dit").module.network.state_dict()
    after = load_run(name, weights="online").module.network.state_dict()
    assert all(not torch.equal(after[key], before[key]) for key in before)
    silent = [key for key in after if "guidance_embedding.mlp.2" in key or "span_embedding.mlp.2" in key]
    assert len(silent) == (2 if few is LCM else 4)
    assert all(float(after[key].abs().max()) > 0 for key in silent), "what was silent has begun to learn"


@BOTH
def test_stopping_and_resuming_changes_no_bit(here: Path, few: list[str]) -> None:
    name = next(item for item in few if item.startswith("name=")).removeprefix("name=")
    launch([*few, "run_id=stopped", "trainer.max_steps=2"])
    launch([f"resume=runs/{name}/stopped", "trainer.max_steps=-1"])
    first, second = checkpoint(f"{name}/whole"), checkpoint(f"{name}/stopped")
    for entry in ("state_dict", "ema", "optimizer_states"):
        torch.testing.assert_close(second[entry], first[entry], rtol=0, atol=0)
    assert losses(f"{name}/whole") == losses(f"{name}/stopped")


@BOTH
def test_pictures_grades_and_weights_come_without_the_teacher(
    here: Path, few: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = next(item for item in few if item.startswith("name=")).removeprefix("name=")
    monkeypatch.setattr("ldm.training.teacher.read_run", lambda *_, **__: pytest.fail("the teacher was read"))
    module = load_run(name).module
    generation = module.generation()
    requests = [Request(prompt="a red circle", seed=0), Request(prompt="a red circle", seed=0, scale=3.5)]
    assert generation.pictures(requests, latent_size=(8, 8), batch_size=2).shape == (2, 3, 64, 64)
    told = module.text_encoder(["a red circle"])
    x, t = torch.ones(1, 4, 8, 8), torch.ones(1)
    one, other = (module.network(x, t, replace(told, guidance=torch.tensor([w]))) for w in (1.0, 3.5))
    assert not torch.equal(one, other), "the scale is heard"
    run("evaluate", [f"run={name}", "num_prompts=4", "num_steps=1", f"out={tmp_path}/grades"])
    assert (tmp_path / "grades/composition.json").is_file()
    run("export", [f"run={name}", "format=safetensors", f"out={tmp_path}/weights"])
    parts = read_parts(tmp_path / "weights/weights.safetensors").parts
    assert sorted(parts) == ["network", "text_encoder"]
    assert any(key.startswith("late.guidance_embedding") for key in parts["network"])
    with pytest.raises(
        ValueError, match=r"no place for late\.guidance_embedding|cannot|context_mask|diffusers"
    ):
        run("export", [f"run={name}", "format=diffusers", f"out={tmp_path}/diffusers"])


def test_any_network_and_parameterization_becomes_one_of_few_steps_and_a_flow_alone_by_average_velocities(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch([*UNET, "run_id=whole"])
    launch(["task=lcm", "task.teacher=unet", "name=lcm_unet", *EVERY, "run_id=a"])
    loaded = load_run("lcm_unet")
    assert type(loaded.module.network).__name__ == "UNet"
    assert type(loaded.module.diffusion.parameterization).__name__ == "Epsilon"
    assert bool(torch.tensor(losses("lcm_unet/a")).isfinite().all())
    with pytest.raises(SystemExit):
        launch(["task=meanflow", "task.teacher=unet", "name=wrong", *EVERY, "run_id=a"])
    assert "MeanFlow averages the velocity of the straight path" in capsys.readouterr().err


def test_average_velocities_from_scratch(here: Path) -> None:
    scratch = [*DIT, "task=meanflow", "sampler=mean_flow", "guidance=distilled", "name=scratch", *EVERY]
    launch([*scratch, "run_id=a", "task.objective.improved=false"])
    exact = "task.objective.derivative._target_=ldm.diffusion.mean_flow.ForwardMode"
    launch([*scratch, "run_id=c", exact, "~task.objective.derivative.step"])
    launch([*scratch, "run_id=b"])
    assert len({tuple(losses(f"scratch/{name}")) for name in "abc"}) == 3
    assert load_run("scratch").module.teacher_run is None


def test_the_loss_weight_does_not_hide_how_large_the_error_is(here: Path) -> None:
    shown = losses("meanflow/whole")
    assert max(abs(loss - 1) for loss in shown) > 1e-3, "the weighted loss of every sample is 1 but for 1e-5"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["network=unet_small"], "network=unet_small cannot be joined with task.teacher"),
        (["diffusion=cosine_v"], "diffusion=cosine_v cannot be joined with task.teacher"),
        (["task.teacher=shapes_dti"], "there is no run 'shapes_dti'.*shapes_dit"),
        (["network.depht=2"], "DiT has no parameter 'depht'; did you mean 'depth'"),
        (["task.teacher=shapes_vae"], "task.teacher=shapes_vae is no denoiser"),
        (["task.teacher=???"], "give task.teacher=<a run of task=diffusion>"),
    ],
)
def test_what_cannot_be_is_refused_before_torch_is_asked(here: Path, wrong: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked([*LCM, *wrong])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["network.depth=2"], "does not fit network, a DiT"),
        (["network.guidance=null"], "DiT is not told of guidance"),
        (["init_from=shapes_dit"], "both name weights to begin with"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_claimed(
    here: Path, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        launch([*LCM, "name=wrong", *wrong, "run_id=a"])
    assert re.search(message, capsys.readouterr().err)
    assert not Path("runs/wrong").exists()


def test_a_run_goes_on_with_the_teacher_it_had_and_no_other(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch([*DIT, "name=longer", "run_id=a"])
    launch([*LCM, "name=changed", "run_id=a", "trainer.max_steps=2"])
    with pytest.raises(SystemExit):
        launch(["resume=runs/changed/a", "task.teacher=longer", "trainer.max_steps=-1"])
    assert "has learned from checkpoint" in capsys.readouterr().err


@BOTH
def test_a_batch_in_pieces_has_the_gradients_of_the_whole(here: Path, few: list[str]) -> None:
    config = checked([*few, "run_id=x"])
    module = built(config.task)
    module.prepare(anew=True)
    for name, parameter in module.network.named_parameters():
        if "_embedding.mlp.2" in name:  # what is silent would hide what stands before it
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    module.prepare(anew=False)  # the target is this student: averaging does not move it
    batch = Batch(
        captions=["a red circle", "two blue squares", "a green ring", "three purple crosses"],
        images=None,
        moments=torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1)),
        keys=["a", "b", "c", "d"],
        visits=[0] * 4,
        slots=range(4),
        num_slots=4,
    )

    def gradients(batches: list[Batch]) -> list[torch.Tensor]:
        module.zero_grad()
        for one in batches:
            (module.training_step(one, 0) / len(batches)).backward()
        trained = [x for part in module.parts().values() for x in part.parameters()]
        return [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in trained]

    whole, halves = gradients([batch]), gradients(batch.pieces(2))
    largest = max(float(x.abs().max()) for x in whole)
    assert largest > 1e-3
    for first, second in zip(whole, halves, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
@BOTH
def test_two_processes_train_like_one(here: Path, few: list[str]) -> None:
    name = next(item for item in few if item.startswith("name=")).removeprefix("name=")
    # Adam makes whole steps of gradients that are rounding: with small ones they do not spread.
    gentle = [*few, "optimizer.lr=1e-5"]
    launch([*gentle, "run_id=one"])
    two = [item for item in gentle if item != "trainer=cpu"]
    two += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "run_id=two"]
    train = Path(__file__).parents[2] / "train.py"
    done = subprocess.run(
        [sys.executable, train, *two],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(f"{name}/two") == pytest.approx(losses(f"{name}/one"), rel=2e-3)
    first, second = checkpoint(f"{name}/one"), checkpoint(f"{name}/two")
    torch.testing.assert_close(second["state_dict"], first["state_dict"], rtol=1e-3, atol=1e-4)
