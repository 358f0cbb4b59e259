"""Search for a network; with tune.trials 0, take the one in params.yaml.

With more tune.workers than one, this is the chief of as many processes that run the same.
"""

import logging
import math
import sys
from contextlib import AbstractContextManager
from dataclasses import replace

from emotion_detection import figures, params, paths, stage, tracking
from emotion_detection.console import UserError, log, run
from emotion_detection.data.dataset import Dataset, Split, part, split
from emotion_detection.files import atomic, fingerprint, write_json
from emotion_detection.models import hardware, network
from emotion_detection.models.network import Architecture, build
from emotion_detection.training.fit import fit
from emotion_detection.tuning import search
from emotion_detection.tuning.search import Outcome, Trial, described, values_of
from emotion_detection.tuning.workers import worker_id

OUTPUTS = (paths.HYPERPARAMETERS, paths.TUNE)

WORKER = (sys.executable, "-m", "stages.tune")


def main() -> None:
    """Read params, search, and write what was found."""
    values = params.load()
    baseline = Architecture(**dict(values.network))
    if values.tune.trials == 0:
        log.info("tune.trials = 0: no search, the network of params.yaml is taken")
        with atomic(paths.TUNE) as folder:
            folder.mkdir()
            write_json(folder / paths.METRICS, {"tune/trials": 0})
            # `dvc plots` complains of a table that is not there.
            (folder / "trials.csv").write_text("trial,val_accuracy\n", encoding="utf-8")
        search.save_hyperparameters(baseline, paths.HYPERPARAMETERS)
    else:
        _search(values, baseline)


def _search(values: params.Params, baseline: Architecture) -> None:
    """Search, and write what was found unless this is a worker of the process that does."""
    worker = worker_id()
    settings = values.tune
    dataset = Dataset.open(paths.DATASET)
    rows = split(dataset, **values.split.model_dump(), seed=values.seed)
    rows = part(dataset, rows, settings.images, values.seed)
    image_shape = dataset.images.shape[1:]
    precision, why = hardware.resolve_precision(values.precision)
    if values.deterministic:
        fit.be_deterministic(values.seed)
    log.log(
        logging.INFO if worker is None else logging.DEBUG,
        "%s search, %d trials of at most %d epochs on %s train and %s validation images; %s (%s)",
        settings.oracle,
        settings.trials,
        settings.epochs,
        f"{len(rows.train):,}",
        f"{len(rows.validation):,}",
        precision,
        why,
    )
    made_of = {
        "seed": values.seed,
        "precision": precision,
        "deterministic": values.deterministic,
        "split": values.split.model_dump(),
        "network": values.network.model_dump(include=set(params.SingleNetwork.model_fields)),
        # A search goes on with any number of workers.
        "tune": settings.model_dump(exclude={"workers"}),
    }
    folder = paths.SEARCH_STATE / fingerprint(
        {"dataset": dataset.digest, **made_of}, [main, Dataset, network, training, search, inputs]
    )
    if worker is None and stage.restore(OUTPUTS, folder):
        return

    def run_trial(trial: Trial) -> Outcome:
        architecture = trial.architecture
        log.info(
            "trial %d/%d  blocks of %s; kernels %s; dense %s",
            trial.number,
            trial.total,
            *(described(architecture)[name] for name in ("filters", "kernel_sizes", "dense_units")),
        )
        with tracking.child(
            f"trial {trial.number:02d}",
            params={
                **described(architecture),
                # One by one too: MLflow's charts over trials take numbers.
                **values_of(architecture),
                "gflops": round(architecture.forward_gflops(image_shape, len(dataset.classes)), 4),
                "epochs": trial.epochs,
            },
            tags={
                "stage": "trial",
                "dataset": dataset.source,
                "selected_on_test": str(rows.selected_on_test).lower(),
            },
            note=(
                f"Trial {trial.number} of {trial.total} of the search above it, its parent run.\n\n"
                "Its network is in the parameters; blocks, layers and sizes are there one by one "
                "for charts over several trials.\n\n"
                "`val_accuracy` is what the search goes by, `epoch/` the curves behind it."
            ),
        ):
            with fit.strategy().scope():
                model = build(
                    architecture,
                    image_shape=image_shape,
                    classes=len(dataset.classes),
                    precision=precision,
                    seed=values.seed,
                )
            tracking.log_params({"parameters": model.count_params()})
            if trial.continues:
                model.load_weights(trial.continues)
            history = fit.fit(
                model,
                dataset,
                train=rows.train,
                validation=rows.validation,
                recipe=fit.Recipe(
                    lr=settings.lr,
                    schedule=settings.schedule,
                    batch_size=settings.batch_size,
                    epochs=trial.epochs,
                    early_stopping_patience=settings.early_stopping_patience,
                ),
                seed=values.seed,
                log_epoch=tracking.log_epoch,
                first_epoch=trial.first_epoch,
                verbose=False,
            )
            best = fit.best_epoch(history)
            outcome = Outcome(
                val_accuracy=float(best["val_accuracy"]),
                val_loss=float(best["val_loss"]),
                parameters=model.count_params(),
                epochs=len(history),
            )
            tracking.log_metrics(
                {
                    "val_accuracy": outcome.val_accuracy,
                    "val_loss": outcome.val_loss,
                    "seconds": float(history["seconds"].sum()),
                }
            )
            if settings.oracle == "hyperband":
                if not math.isfinite(history["loss"].iloc[-1]):
                    raise UserError("its last loss is no number, and nothing goes on from there")
                model.save_weights(trial.checkpoint)
        return outcome

    def tracked() -> AbstractContextManager[str]:
        run_id = tracking.load_run_id(folder / paths.RUN_FILE)
        if worker is None:
            return tracking.run(
                "tune",
                note=_note(settings, dataset, rows),
                dataset=dataset,
                params=made_of,
                tags={
                    "selected_on_test": str(rows.selected_on_test).lower(),
                    "workers": str(settings.workers),
                },
                run_id=run_id,
            )
        if run_id is None:
            raise UserError(
                f"{folder}: no search to work for; start its chief first, with the same params, "
                "data and code in a folder that both see, and precision set"
            )
        return tracking.joined(run_id, worker)

    with tracked() as run_id:
        if worker is None:
            tracking.save_run_id(folder / paths.RUN_FILE, run_id)
        found = search.search(
            space=settings.space,
            baseline=replace(baseline, members=1),
            oracle=settings.oracle,
            trials=settings.trials,
            epochs=settings.epochs,
            max_gflops=settings.max_gflops,
            image_shape=image_shape,
            classes=len(dataset.classes),
            seed=values.seed,
            folder=folder,
            run=run_trial,
            workers=settings.workers,
            command=WORKER,
        )
        if found is None:
            return
        chosen, trials = found
        metrics = {
            "tune/trials": len(trials),
            "tune/failed": int((trials["status"] != "COMPLETED").sum()),
            "tune/best_val_accuracy": float(trials["val_accuracy"].max()),
        }
        with atomic(paths.TUNE) as report:
            report.mkdir()
            write_json(report / paths.METRICS, metrics)
            trials.to_csv(report / "trials.csv", index=False)
            figures.save(figures.trials(trials), report / "trials.png")
        search.save_hyperparameters(chosen, paths.HYPERPARAMETERS)
        # Not in DVC's tables, where it would seem a change between any two experiments.
        tracking.log_metrics(metrics | {"tune/seconds": float(trials["seconds"].sum())})
        tracking.log_files(paths.TUNE, "search")
        best = int(trials["trial"][trials["val_accuracy"].idxmax()])
        tracking.set_tags(
            {
                "best.trial": f"{best:02d}",
                **{f"best.{name}": str(value) for name, value in described(chosen).items()},
            }
        )
    stage.keep(OUTPUTS, folder)


def _note(settings: params.Tune, dataset: Dataset, rows: Split) -> str:
    return (
        f"A {settings.oracle} search of {settings.trials} trials on **{dataset.source}**.\n\n"
        f"Each learns from {len(rows.train):,} images for at most {settings.epochs} epochs and is "
        f"scored by val_accuracy on {len(rows.validation):,}.\n\n"
        "Its trials are the child runs: select them to compare. The tags `best.*` say which one "
        "was taken, and its hyperparameters."
    )


if __name__ == "__main__":
    run(main)
