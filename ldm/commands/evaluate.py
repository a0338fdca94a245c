"""``ldm evaluate``: checkpoints of a run, measured by any number of metrics; each score a record with its passport."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from ldm.commands.load import load_run
from ldm.commands.score_tables import report, shown
from ldm.commands.scored import checkpoints_of, data_of, generation_of, origin_of
from ldm.evaluation.scores import Score
from ldm.evaluation.subject import Metric
from ldm.evaluation.together import Together
from ldm.interfaces import Guidance, Sampler
from ldm.sampling.from_run import FromRun, GuidanceFromRun
from ldm.sampling.grids import Grid
from ldm.training.ranks import launched
from ldm.training.scoring import fitting, refuse_lacking, score
from ldm.training.subject import RunSubject
from ldm.training.wandb_scores import log_scores

WALKS = Path(
    "evaluation", "walks"
)  # in a run folder: what networks have seen of samples that are not scored yet


def evaluate(
    *,
    run: str,
    metrics: dict[str, Metric | None],
    checkpoint: str | None = None,
    follow: bool = False,
    num_prompts: int = 500,
    num_samples: int = 2000,
    reference: str = "train",
    seed: int = 0,
    num_seeds: int = 1,
    weights: str = "ema",
    num_steps: int | None = None,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    features: DictConfig | None = None,
    train_shards: str | None = None,
    val_shards: str | None = None,
    batch_size: int = 50,
    num_workers: int = 0,
    device: str = "auto",
    runs: str = "runs",
    references: str | None = None,
    out: str | None = None,
    again: bool = False,
    poll: float = 30.0,
) -> list[Score]:
    """Measure a run: composition, FID and its kin, text, reconstruction, latents, memorization, each with an interval.

    metrics=[frechet,kernel,manifold] names files of configs/metrics; docs/evaluation.md says what each number means.
    Scores go to <run>/evaluation/scores, each with its whole protocol. What is scored already is not scored again, and
    an interrupted evaluation goes on where it was. Under torchrun or srun the processes share the pictures.

    Args:
        run: run folder, or its name in ``runs``, or one of its checkpoints.
        metrics: what is measured, by any names.
        checkpoint: null for the newest, "all", "best", or the name of one.
        follow: go on with every new checkpoint until the training has ended.
        num_prompts: pictures that the composition grade makes.
        num_samples: pictures that metrics of distributions make.
        reference: the set that these compare with and take captions from, "train" or "val".
        seed: of the first sampling noise, and of the composition's prompts.
        num_seeds: how many sampling seeds; each makes all pictures anew.
        weights: "ema", "online", or the name of an average that ``ldm ema`` made.
        num_steps: sampling steps; null for the run's own.
        sampler: the run's own or another, e.g. sampler=heun.
        grid: the run's own or another, e.g. grid=log_snr.
        guidance: the run's own, with another strength by guidance.scale=4, or another.
        features: the network that metrics look with which name none themselves.
        train_shards: where the training set is now; null for where it was.
        val_shards: where the validation set is now; null for where it was.
        batch_size: pictures made at once.
        num_workers: processes that decode the data's pictures.
        device: "auto", "cpu" or "cuda".
        runs: folder of all runs.
        references: folder for what networks have seen of reference sets; null keeps nothing.
        out: folder for pictures and tables; null for ``<run>/evaluation``.
        again: measure also what is scored already.
        poll: seconds between two looks for new checkpoints.

    Raises:
        MissingNeeds: files of weights are not on this machine; told before anything is loaded.
        ValueError: no metric can be measured of this run, or nothing is asked for.
    """
    chosen = {name: metric for name, metric in metrics.items() if metric is not None}
    if not chosen or min(num_prompts, num_samples, num_seeds, batch_size) < 1:
        raise ValueError(
            f"nothing to measure: metrics are {', '.join(chosen) or 'none'}; num_prompts={num_prompts}, "
            f"num_samples={num_samples}, num_seeds={num_seeds} and batch_size={batch_size} must be 1 or more"
        )
    refuse_lacking(chosen)
    found: list[Score] = []
    with launched(device) as (ranks, place):
        console = Console(quiet=not ranks.is_main)
        for path in checkpoints_of(
            run, checkpoint, follow=follow, runs=runs, ranks=ranks, place=place, poll=poll
        ):
            try:
                loaded = load_run(path, weights=weights, runs=runs)
            except FileNotFoundError:
                if not follow:
                    raise
                continue  # the training has removed it meanwhile
            with shown(ranks) as on_batch:
                subject = RunSubject(
                    origin=origin_of(loaded),
                    module=loaded.module.to(place),
                    generation=generation_of(
                        loaded,
                        place,
                        sampler=sampler,
                        grid=grid,
                        guidance=guidance,
                        num_steps=num_steps,
                        runs=runs,
                    ),
                    data_module=partial(data_of, loaded.config, train_shards, val_shards),
                    seeds=range(seed, seed + num_seeds),
                    folder=Path(out) if out else loaded.folder.path / "evaluation",
                    kept=loaded.folder.path / WALKS,
                    references=None if references is None else Path(references),
                    together=Together(ranks.rank, ranks.size, place),
                    device=place,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    on_batch=on_batch,
                )
                fit, unfit = fitting(chosen, subject)
                if not fit:
                    raise ValueError(_nothing_fits(loaded.folder.path, unfit))
                by_metric, fresh = score(fit, subject, loaded.folder.path, again=again)
            if ranks.is_main:
                log_scores(loaded.folder.path, fresh)
            report(console, fit, by_metric, unfit, title=subject.title)
            console.print(f"written to {subject.folder}", soft_wrap=True, highlight=False)
            found += [one for some in by_metric.values() for one in some]
    return found


def _nothing_fits(run: Path, unfit: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in unfit.items())
    advice = "give other metrics, such as metrics=[frechet,kernel,manifold]"
    return f"nothing can be measured of {run} ({reasons}): {advice}"
