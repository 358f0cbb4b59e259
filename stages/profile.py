"""Describe the dataset: class balance, samples, pixels, duplicates and leaks."""

from emotion_detection import paths
from emotion_detection.console import log, run
from emotion_detection.data import profile
from emotion_detection.data.dataset import Dataset, read_near_pairs
from emotion_detection.files import atomic, write_csv, write_json
from emotion_detection.settings import params


def main() -> None:
    """Read params, measure, and write metrics, tables and figures."""
    seed = params.load().split.seed
    dataset = Dataset.open(paths.DATASET)
    # Imported here, since matplotlib takes a second, and wrong params are refused before.
    from emotion_detection.figures import data as figures
    from emotion_detection.figures.style import save

    found = profile.measure(dataset)
    rows, pairs = profile.sample_rows(dataset, seed), read_near_pairs(paths.DATASET)
    plots = {
        "class_balance": figures.class_balance(found.counts),
        "samples": figures.sample_grid(
            dataset.images[rows], dataset.labels[rows], dataset.classes, profile.SAMPLES_PER_CLASS
        ),
        "conflicts": figures.duplicates_grid(profile.conflicts(dataset)),
        "near_duplicates": figures.near_duplicates_grid(profile.nearest_misses(dataset, *pairs)),
    }
    with atomic(paths.PROFILE) as folder:
        folder.mkdir()
        write_json(folder / paths.METRICS, found.metrics())
        for name, (header, table) in found.tables().items():
            write_csv(folder / f"{name}.csv", header, table)
        for name, figure in plots.items():
            save(figure, folder / f"{name}.png")
    log.info("profile: %s; %s", found.summary(), paths.PROFILE)


if __name__ == "__main__":
    run(main, stage="profile")
