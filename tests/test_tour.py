"""The notebook docs/tour.ipynb, run from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.project import ROOT, Project

LARGEST = 300_000
"""Bytes: its outputs are there to be read on GitHub, and every clone downloads them."""


@pytest.mark.slow
def test_the_tour_runs_from_beginning_to_end(tmp_path: Path) -> None:
    project = Project.begin(tmp_path, {})
    # As committed, but for the layout in which `begin` writes it.
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text("utf-8"), "utf-8")
    project.commit("Settings as committed")
    notebook = nbformat.read(tmp_path / "docs" / "tour.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "docs")}},
    )
    client.execute(env=project.env)

    # With the outputs of this run: this is how those that are committed were made.
    nbformat.write(notebook, tmp_path / "docs" / "tour.ipynb")
    printed = {cell.source: _printed(cell) for cell in notebook.cells if cell.cell_type == "code"}
    # A command that fails does not end a notebook.
    experiments = [text for source, text in printed.items() if source.startswith("!dvc exp run")]
    assert ["test accuracy" in text.lower() for text in experiments] == [True, True]
    (difference,) = (text for source, text in printed.items() if source.startswith("!dvc metrics"))
    assert "test/accuracy" in difference
    (scores,) = (text for source, text in printed.items() if "ed.evaluate" in source)
    assert scores.count("Estimate") == 2
    (labels,) = (text for source, text in printed.items() if "mlflow.pyfunc" in source)
    assert "probabilities" in labels
    assert project.run("git", "status", "--porcelain", "params.yaml") == ""


def _printed(cell: nbformat.NotebookNode) -> str:
    texts = (
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )
    return "".join(texts)


def test_the_outputs_in_the_tour_are_small() -> None:
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < LARGEST
