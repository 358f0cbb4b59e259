"""What several seeds come to, and the comparison of two experiments by them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.training.seeds import compared, spread
from tests.support.project import Project


def test_the_mean_of_seeds_has_the_interval_of_students_t() -> None:
    # The quantile of Student's t for 2 degrees of freedom is 4.303.
    found = spread([0.64, 0.65, 0.66])
    assert (found.mean, found.deviation) == pytest.approx((0.65, 0.01))
    assert (found.low, found.high) == pytest.approx((0.65 - 0.02484, 0.65 + 0.02484), abs=1e-5)
    assert str(found) == ("65.0 ± 1.0 % over 3 seeds (95 % interval of the mean 62.5 to 67.5)")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """Return what commits the networks of a training, by the accuracies that they were kept at."""
    project = Project(tmp_path)
    folder = tmp_path / "reports" / "train"
    folder.mkdir(parents=True)
    for command in (
        ("git", "init", "--quiet"),
        ("git", "config", "user.name", "A Person"),
        ("git", "config", "user.email", "person@example.org"),
        ("dvc", "init", "--quiet"),
    ):
        project.run(*command)
    monkeypatch.chdir(tmp_path)

    def committed(*accuracies: float, name: str | None = None) -> Project:
        # The best epoch counts, which is the first one here.
        rows = [
            f"{epoch},{accuracy - 0.1 * epoch},{network}"
            for network, accuracy in enumerate(accuracies, start=1)
            for epoch in (0, 1)
        ]
        table = ["epoch,val_accuracy,network", *rows]
        (folder / "networks.csv").write_text("\n".join(table) + "\n")
        project.run("dvc", "add", "--quiet", "reports/train")
        project.commit("Train")
        if name is not None:
            project.run("git", "branch", name)
        return project

    return committed


def test_two_experiments_are_compared_by_the_means_of_their_seeds(
    write: Callable[..., Project],
) -> None:
    write(0.60, 0.61, 0.62, name="old")
    write(0.70, 0.71, 0.72, name="new")
    lines = compared("new", "old")
    assert lines[0].startswith("new: validation accuracy 71.0 ± 1.0 % over 3 seeds")
    assert lines[1].startswith("old: validation accuracy 61.0 ± 1.0 % over 3 seeds")
    # Welch's interval for 4 degrees of freedom: 2.776 times the error of the difference.
    assert lines[2] == "difference +10.0 points (95 % interval +7.7 to +12.3): new is better"
    assert compared("old", "workspace")[2].endswith("workspace is better")


def test_a_difference_within_the_noise_is_called_unknown(write: Callable[..., Project]) -> None:
    write(0.60, 0.65, name="old")
    write(0.61, 0.66)
    assert compared("workspace", "old")[2].endswith(": neither is known to be better")


def test_what_cannot_be_compared_is_named_with_the_remedy(write: Callable[..., Project]) -> None:
    project = write(0.60, 0.65)
    with pytest.raises(UserError, match="other: no experiment, branch or commit has this name"):
        compared("other", "workspace")
    table = project.root / "reports" / "train" / "networks.csv"
    table.rename(table.with_name("history.csv"))
    project.run("dvc", "add", "--quiet", "reports/train")
    with pytest.raises(UserError, match=r"workspace: .*`dvc exp run -S train\.seeds=5`"):
        compared("HEAD", "workspace")
