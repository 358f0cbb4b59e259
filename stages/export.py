"""Make the model that is used from the trained networks: ensemble, tta, ONNX; and log it."""

from functools import partial

from emotion_detection import paths
from emotion_detection.console import log, quiet, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import split
from emotion_detection.files import atomic, write_json
from emotion_detection.settings import params

NOTE = "Its model is that of an earlier training, averaged over other views of an image."


def main() -> None:
    """Read params, combine the networks, score them on validation, save and log the model."""
    settings = params.load()
    dataset = Dataset.open(paths.DATASET)
    rows = split(dataset, settings.split)
    # Imported here, since TensorFlow takes seconds, and wrong params are refused before.
    with quiet():
        from emotion_detection.inference import onnx
        from emotion_detection.models import calibration, saving
        from emotion_detection.stage import Stage, load_networks
        from emotion_detection.tracking import lineage, runs

    stage = Stage("export", settings, dataset)
    if stage.restore():
        return
    stage.announce(f"{len(rows.validation):,} validation images")
    combined = partial(saving.combined, load_networks(), **settings.tta.model_dump())
    calibrated = calibration.fit(combined(), dataset, rows.validation)
    model, metrics = combined(temperature=calibrated.temperature), dict(calibrated.scores)
    notes = dataset.notes | lineage.of_files(paths.networks()).notes | calibrated.notes
    with atomic(paths.MODEL) as path:
        saving.save(model, path, dataset.classes, notes)
    with atomic(paths.ONNX) as folder:
        folder.mkdir()
        # DVC warns of a folder that is empty.
        write_json(folder / "export.json", stage.params)
        if settings.export.onnx:
            metrics |= onnx.export(model, folder / paths.ONNX_MODEL.name, dataset, notes)
    trained = runs.load_run_id(paths.NETWORKS / paths.RUN_FILE)
    exported = runs.exported(trained, key=stage.params_digest, params=stage.params, note=NOTE)
    with stage.logging_to(exported) as run_id:
        stage.save_run_id(paths.EXPORT_RUN)
        if run_id is not None:
            runs.set_tags({"weights.digest": saving.digest(model)})
            runs.log_model(model, dataset.classes, notes)
        stage.write(calibration.headlines(metrics), more_metrics=metrics)
    log.info("export: %s; %s", calibration.summary(metrics), paths.MODEL)


if __name__ == "__main__":
    run(main, stage="export")
