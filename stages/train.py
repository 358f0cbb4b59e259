"""Train the network that tune chose, and track it."""

import shutil
from dataclasses import asdict, replace

import keras

from emotion_detection import figures, params, paths, stage, tracking
from emotion_detection.console import log, run
from emotion_detection.data.dataset import Dataset, split
from emotion_detection.files import atomic, fingerprint, write_json
from emotion_detection.models import hardware, network, saving
from emotion_detection.models.network import build, export
from emotion_detection.training.fit import augment, fit, pretrained
from emotion_detection.tuning.search import load_hyperparameters

OUTPUTS = (paths.MODEL, paths.TRAIN_RUN, paths.TRAIN)
# Trainings that were cut off and wait for their params to come back, of which each has two epochs.
CUT_OFF_KEPT = 3


def main() -> None:
    """Read params, train, write the model, its history and its MLflow run's id."""
    # That this begins says that the end of tune is noted.
    stage.forget(paths.SEARCH_STATE)
    values = params.load()
    settings = values.train
    recipe = fit.Recipe(
        **{k: v for k, v in settings if k not in ("init_from", "members_from", "distillation")}
    )
    architecture = load_hyperparameters(paths.HYPERPARAMETERS, values.network)
    dataset = Dataset.open(paths.DATASET)
    rows = split(dataset, **values.split.model_dump(), seed=values.seed)
    precision, why = hardware.resolve_precision(values.precision)
    if values.deterministic:
        fit.be_deterministic(values.seed)
    made_of = {
        "seed": values.seed,
        "precision": precision,
        "deterministic": values.deterministic,
        "split": values.split.model_dump(),
        "train": settings.model_dump(),
        "network": asdict(architecture),
    }
    state = paths.TRAIN_STATE / fingerprint(
        {"dataset": dataset.digest, **made_of},
        [main, Dataset, network, training, inputs, augment, pretrained, modelfile],
    )
    if stage.restore(OUTPUTS, state):
        return
    stage.forget(paths.TRAIN_STATE)
    others = sorted(
        (other for other in paths.TRAIN_STATE.glob("*/") if other != state),
        key=lambda other: other.stat().st_mtime,
    )
    if others and not state.exists():
        log.info(
            "starting anew: %d cut off with other data, params or code wait in %s for those",
            len(others),
            paths.TRAIN_STATE,
        )
    held = {"seed": values.seed, **{f"split.{k}": v for k, v in values.split}}
    first = " and ".join(settings.members_from)
    taught = " and ".join(settings.distillation.teachers)
    checkpoints = fit.Checkpoints(state)
    given: list[keras.Model] = []
    teach = None
    with fit.strategy().scope():
        if settings.members_from:
            given = pretrained.members(
                settings.members_from, architecture, dataset=dataset, held=held
            )
        # Where all are trained at once, each has a seed of its own, too.
        seed = values.seed + len(given)
        model = build(
            replace(architecture, members=architecture.members - len(given)),
            image_shape=dataset.images.shape[1:],
            classes=len(dataset.classes),
            precision=precision,
            smallest=recipe.smallest(dataset.images.shape[1:3]),
            seed=seed,
        )
        if settings.init_from and not checkpoints.begun():
            pretrained.start(model, settings.init_from, dataset=dataset, held=held)
        if taught:
            teach = pretrained.teacher(
                settings.distillation.teachers,
                settings.distillation.weight,
                dataset=dataset,
                held=held,
                precision=precision,
            )
    log.info(
        "training %s parameters on %s images, validating on %s, batches of %d; %s (%s)",
        f"{model.count_params():,}",
        f"{len(rows.train):,}",
        f"{len(rows.validation):,}",
        settings.batch_size,
        precision,
        why,
    )
    if rows.selected_on_test:
        log.warning("split.validation = test: the epoch is chosen on the test images, which leaks")
    parameters = sum(each.count_params() for each in (*given, model))
    begun = tracking.load_run_id(state / paths.RUN_FILE)
    with tracking.run(
        "train",
        note=(
            f"A network of {parameters:,} parameters trained on "
            f"{len(rows.train):,} images of **{dataset.source}**"
            f"{f', its first members those of {first}' if given else ''}"
            f"{f' and on what {taught} says of them' if taught else ''}"
            f"{f', from {settings.init_from} on' if settings.init_from else ''}"
            f"{', the epoch chosen **on the test images**' if rows.selected_on_test else ''}.\n\n"
            "Curves are under Model metrics, figures under Artifacts, the network under Logged "
            "models.\n\n"
            "The `test/` metrics are evaluate's, on the test split."
        ),
        dataset=dataset,
        params=made_of | {"parameters": parameters},
        tags={"selected_on_test": str(rows.selected_on_test).lower(), "precision.why": why},
        run_id=begun,
    ) as run_id:
        tracking.save_run_id(state / paths.RUN_FILE, run_id)
        history = fit.fit(
            model,
            dataset,
            train=rows.train,
            validation=rows.validation,
            recipe=recipe,
            seed=seed,
            log_epoch=tracking.log_epoch,
            teach=teach,
            checkpoints=checkpoints,
            # It may have been deleted, or the store be another.
            log_kept=run_id != begun,
        )
        best = fit.best_epoch(history)
        metrics = {
            "epochs": len(history),
            "best_epoch": int(best["epoch"]),
            "val_loss": float(best["val_loss"]),
            "val_accuracy": float(best["val_accuracy"]),
            "train_loss": float(best["loss"]),
            "train_accuracy": float(best["accuracy"]),
        }
        curves = figures.learning_curves(history)
        with atomic(paths.TRAIN) as report:
            report.mkdir()
            write_json(report / paths.METRICS, metrics)
            history.drop(columns="seconds").to_csv(report / "history.csv", index=False)
            figures.save(curves, report / "learning_curves.png")
        model = export(model, architecture, dataset.images.shape[1:], given)
        with atomic(paths.MODEL) as path:
            saving.save(model, path, dataset.classes)
        tracking.log_metrics(metrics)
        tracking.set_tags({"weights.digest": fit.digest(model)})
        tracking.log_files(paths.TRAIN, "training")
        tracking.log_model(model, dataset.images[rows.train[:2]], dataset.classes)
        tracking.save_run_id(paths.TRAIN_RUN, run_id)
    stage.keep(OUTPUTS, state)
    for other in others[:-CUT_OFF_KEPT]:
        shutil.rmtree(other)


if __name__ == "__main__":
    run(main)
