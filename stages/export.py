"""Return the trained network to programs without TensorFlow, as ONNX, if a param asks for it."""

import numpy as np

from emotion_detection import params, paths
from emotion_detection.console import UserError, log, run
from emotion_detection.files import atomic, write_json

TIMED_BATCHES = (1, 256)


def main() -> None:
    """Read params, export and compare with Keras; or write down that nothing was asked for."""
    settings = params.load().export
    if settings.onnx:
        _onnx(settings.tolerance)
        return
    with atomic(paths.EXPORT) as folder:
        folder.mkdir()
        write_json(folder / paths.EXPORTED.name, {"onnx": None})
    with atomic(paths.EXPORT_REPORT) as report:
        report.mkdir()
        write_json(report / paths.METRICS, {"export/onnx": False})
    log.info("export.onnx = false: nothing to export")


def _onnx(tolerance: float) -> None:
    # Imported here, since most runs export nothing, and TensorFlow takes seconds.
    from emotion_detection import tracking
    from emotion_detection.data.dataset import Dataset
    from emotion_detection.inference import onnx
    from emotion_detection.models import network, saving

    dataset = Dataset.open(paths.DATASET)
    rows = dataset.is_test.nonzero()[0]
    model = network.load(paths.MODEL)
    by_keras = saving.compiled(model)
    with atomic(paths.EXPORT) as folder:
        folder.mkdir()
        path = folder / paths.ONNX.name
        onnx.save(model, path, dataset.classes)
        by_onnx, _ = onnx.load(path)
        difference = onnx.largest_difference(by_keras, by_onnx, dataset.images, rows)
        if not difference <= tolerance:
            raise UserError(
                f"{paths.ONNX}: a probability is {difference:.1e} from that of {paths.MODEL}, "
                f"and export.tolerance = {tolerance:g}: raise it if that is near enough"
            )
        exported = {"file": path.name, "images": model.input_shape, "classes": dataset.classes}
        write_json(folder / paths.EXPORTED.name, {"onnx": exported})
    speeds = {
        f"export/{name}_images_per_second_{size}": onnx.images_per_second(
            probabilities, np.resize(dataset.images[rows[:size]], (size, *model.input_shape[1:]))
        )
        for size in TIMED_BATCHES
        for name, probabilities in (("keras", by_keras), ("onnx", by_onnx))
    }
    metrics = {"export/largest_difference": difference, **speeds}
    with atomic(paths.EXPORT_REPORT) as report:
        report.mkdir()
        write_json(report / paths.METRICS, {"export/onnx": True, **metrics})
    with tracking.resumed(tracking.load_run_id(paths.TRAIN_RUN)) as tracked:
        if tracked:
            tracking.log_metrics(metrics)
            tracking.log_files(paths.EXPORT, "export")
    log.info(
        "%s is at most %.1e from Keras in a probability of %s test images; images a second, Keras "
        "and ONNX: %.0f and %.0f one by one, %.0f and %.0f in batches of %d",
        paths.ONNX,
        difference,
        f"{len(rows):,}",
        *speeds.values(),
        TIMED_BATCHES[-1],
    )


if __name__ == "__main__":
    run(main)
