"""What several seeds come to, and the comparison of two experiments by them."""

from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.training.seeds import compared, spread
from tests.support.project import Project


def test_the_mean_of_seeds_has_the_interval_of_students_t() -> None:
    # The quantile of Student's t for 2 degrees of freedom is 4.303.
    found = spread([0.64, 0.65, 0.66], folds=False)
    assert (found.mean, found.deviation) == pytest.approx((0.65, 0.01))
    assert (found.low, found.high) == pytest.approx((0.65 - 0.02484, 0.65 + 0.02484), abs=1e-5)
    assert str(found) == ("65.0 ± 1.0 % over 3 networks (95 % interval of the mean 62.5 to 67.5)")
    # No accuracy is more than all.
    assert spread([0.99, 1.0], folds=False).high == 1.0


def test_the_interval_over_folds_counts_the_images_that_they_share() -> None:
    # Three folds: 1/3 + 1/2 of the variance instead of 1/3 (Nadeau and Bengio).
    found = spread([0.64, 0.65, 0.66], folds=True)
    half = 4.30265 * 0.01 * (1 / 3 + 1 / 2) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.65 - half, 0.65 + half), abs=1e-5)


DVC_FILE = """
stages:
  train:
    cmd: mkdir -p reports/train && cp *.csv metrics.json reports/train
    deps: [data/dataset, networks.csv]
    params: [split]
    outs: [reports/train]
"""


class Trained:
    """A project whose stage train gives networks of the accuracies that it is told."""

    def __init__(self, root: Path) -> None:
        self.project = Project(root)
        self.root = root
        (root / "dvc.yaml").write_text(DVC_FILE)
        (root / "data" / "dataset").mkdir(parents=True)
        (root / "data" / "dataset" / "dataset.json").write_text("{}")
        (root / "metrics.json").write_text("{}")
        for command in (
            ("git", "init", "--quiet"),
            ("git", "config", "user.name", "A Person"),
            ("git", "config", "user.email", "person@example.org"),
            ("dvc", "init", "--quiet"),
        ):
            self.project.run(*command)

    def __call__(
        self, *accuracies: float, name: str | None = None, seed: int = 0, folds: int = 0
    ) -> None:
        """Train, commit, and make a branch `name`."""
        # The best epoch counts, which is the first one here.
        rows = [
            f"{epoch},{accuracy - 0.1 * epoch},{network}"
            for network, accuracy in enumerate(accuracies, start=1)
            for epoch in (0, 1)
        ]
        table = ["epoch,val_accuracy,network", *rows]
        (self.root / "networks.csv").write_text("\n".join(table) + "\n")
        (self.root / "params.yaml").write_text(
            f"split: {{seed: {seed}, fraction: 0.2, folds: {folds}}}\n"
        )
        self.project.run("dvc", "repro")
        self.project.commit("Train")
        if name is not None:
            self.project.run("git", "branch", name)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.chdir(tmp_path)
    return Trained(tmp_path)


def test_two_experiments_are_compared_by_the_means_of_their_networks(train: Trained) -> None:
    train(0.60, 0.61, 0.62, name="old")
    train(0.70, 0.71, 0.72, name="new")
    lines = compared("new", "old")
    assert lines[0].startswith("new: validation accuracy 71.0 ± 1.0 % over 3 networks")
    assert lines[1].startswith("old: validation accuracy 61.0 ± 1.0 % over 3 networks")
    # Welch's interval for 4 degrees of freedom: 2.776 times the error of the difference.
    assert lines[2] == "difference +10.0 points (95 % interval +7.7 to +12.3): new is better"
    assert compared("old", "workspace")[2].endswith("-7.7): workspace is better")


def test_folds_are_compared_fold_by_fold(train: Trained) -> None:
    train(0.50, 0.60, 0.70, name="old", folds=3)
    train(0.51, 0.615, 0.715, folds=3)
    # The folds differ by 20 points, and the settings by 1, 1.5 and 1.5 points.
    half = 4.30265 * 0.288675 * (1 / 3 + 1 / 2) ** 0.5
    assert compared("workspace", "old")[2] == (
        f"difference +1.3 points (95 % interval {4 / 3 - half:+.1f} to {4 / 3 + half:+.1f}): "
        "workspace is better"
    )


def test_a_difference_that_may_be_chance_is_called_so(train: Trained) -> None:
    train(0.60, 0.65, name="old")
    train(0.61, 0.66)
    assert compared("workspace", "old")[2].endswith(": neither is known to be better")
    train(0.1, 0.1, 0.1, name="same")
    train(0.2, 0.2, 0.2)
    assert compared("workspace", "same")[2] == (
        "difference +10.0 points; the networks of a setting do not differ, so that chance cannot "
        "be told from a gain"
    )


def test_what_cannot_be_compared_is_named_with_the_remedy(train: Trained) -> None:
    train(0.60, 0.65, name="old")
    with pytest.raises(UserError, match="unknown Git revision 'other'; `dvc exp list --all"):
        compared("other", "workspace")
    train(0.60, 0.65, seed=1)
    with pytest.raises(UserError, match=r"different images \(split\.seed is 1 and 0\)"):
        compared("workspace", "old")
    # As while it trains: what DVC kept of the training before does not count.
    (train.root / "reports" / "train" / "metrics.json").unlink()
    with pytest.raises(UserError, match="workspace: its training has not ended; run `dvc repro"):
        compared("HEAD", "workspace")
    (train.root / "networks.csv").rename(train.root / "history.csv")
    (train.root / "dvc.yaml").write_text(DVC_FILE.replace("networks.csv", "history.csv"))
    train.project.run("dvc", "repro")
    with pytest.raises(UserError, match=r"workspace: has no reports/train/networks\.csv; `dvc exp"):
        compared("HEAD", "workspace")
