"""Describe the dataset: class balance, samples, pixels, duplicates and leaks."""

from emotion_detection import figures, params, paths
from emotion_detection.console import log, run
from emotion_detection.data import profile
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, write_csv, write_json


def main() -> None:
    """Read params, measure, write tables and figures."""
    values = params.load()
    dataset = Dataset.open(paths.DATASET)
    profile = profile.profile(dataset)
    with atomic(paths.PROFILE) as folder:
        folder.mkdir()
        write_json(folder / paths.METRICS, profile.metrics())
        write_csv(
            folder / "class_balance.csv",
            ("split", "class", "images"),
            [
                (split, name, images)
                for split, of_class in profile.counts.items()
                for name, images in of_class.items()
            ],
        )
        write_csv(folder / "duplicates.csv", profile.DUPLICATE_COLUMNS, profile.duplicates)
        write_csv(
            folder / "bad_files.csv",
            ("file", "reason"),
            [(bad.path, bad.reason) for bad in dataset.bad_files],
        )
        figures.save(figures.class_balance(profile.counts), folder / "class_balance.png")
        rows = profile.sample_rows(dataset, values.profile.samples_per_class, values.seed)
        figures.save(
            figures.sample_grid(
                dataset.images[rows],
                dataset.labels[rows],
                dataset.classes,
                values.profile.samples_per_class,
            ),
            folder / "samples.png",
        )
        figures.save(figures.duplicates_grid(profile.conflicts(dataset)), folder / "conflicts.png")
    log.info(
        "%s exact duplicates in train, %s in test; %s test images are also in train%s; %s pictures "
        "bear two labels; see %s",
        f"{profile.train_duplicates:,}",
        f"{profile.test_duplicates:,}",
        f"{profile.leaked_test_images:,}",
        f" ({profile.dropped_leaks:,} were, and ingest left them out of train)"
        if profile.dropped_leaks
        else "",
        f"{profile.conflicting_groups:,}",
        paths.PROFILE,
    )


if __name__ == "__main__":
    run(main)
