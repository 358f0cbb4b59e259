"""Find the labels that are probably wrong."""

from emotion_detection import paths
from emotion_detection.console import log, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, write_csv
from emotion_detection.settings import params


def main() -> None:
    """Read params, judge every label, write tables and a picture."""
    seed = params.load().seed
    dataset = Dataset.open(paths.DATASET)
    # Imported here, since matplotlib takes a second, and wrong params are refused before.
    from emotion_detection.figures.style import save
    from emotion_detection.labels import suspects

    found = suspects.find(dataset, paths.OUT_OF_FOLD, seed=seed)
    tables = {"suspects": found.table(), "summary": found.summary(), "joint": found.joint()}
    with atomic(paths.LABELS) as folder:
        folder.mkdir()
        for name, table in tables.items():
            write_csv(folder / f"{name}.csv", list(table.columns), table.to_numpy(object).tolist())
        save(found.worst(), folder / "worst.png")
    log.info("labels: %s; %s", found.sentence(), paths.LABELS)


if __name__ == "__main__":
    run(main, stage="labels")
