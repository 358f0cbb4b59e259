"""MLflow's pages: the columns that a person compares runs by, and text in descriptions."""

import html
import json
import re

VIEW = "results"
"""The name of the view in the page's address."""

VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""The tag of the experiment that MLflow's pages read the view from, as their Share button does."""

COLUMNS = {
    "metrics.`test/accuracy`": 105,
    "metrics.`test/accuracy_low`": 125,
    "metrics.`test/accuracy_high`": 130,
    "metrics.`test/macro_f1`": 112,
    "tags.`recipe`": 95,
    "tags.`git.commit`": 82,
    "attributes.`Dataset`": 180,
    "metrics.`val_accuracy`": 110,
}
"""The columns after the run's name, its date and its duration, with their widths in pixels."""


def view() -> str:
    """Return the view of the runs as MLflow's pages read it."""
    return json.dumps(
        {
            "selectedColumns": list(COLUMNS),
            "columnOrder": list(COLUMNS),
            "columnWidths": COLUMNS,
        }
    )


def plain(text: str) -> str:
    """Return `text`, such as the name of a file, so that MLflow's pages show it as it is.

    They would take Markdown and HTML in a description for markup.
    """
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\*\[\]]", lambda found: f"&#{ord(found[0])};", escaped)


def fragment(experiment_id: str) -> str:
    """Return the end of the address of the experiment's runs."""
    # The pages are about language models unless they are told otherwise.
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    )
