"""What a stage has made, kept until the next stage begins.

A stage that is stopped after its work and before its end is noted is run again, and its outputs are
removed first. It must not do its work, and log its run, a second time.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from emotion_detection.console import log
from emotion_detection.files import whole

OUTPUTS = "outputs"


def keep(outputs: Sequence[Path], state: Path) -> None:
    """Make copies of `outputs`, files and folders of different names, all that is in `state`."""
    with whole(state / OUTPUTS) as folder:
        folder.mkdir()
        for path in outputs:
            _copy(path, folder / path.name)
    for path in state.iterdir():
        if path.name != OUTPUTS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def restore(outputs: Sequence[Path], state: Path) -> bool:
    """Write `outputs` again if they are kept in `state`; give False if they are not."""
    if not is_finished(state):
        return False
    for path in outputs:
        with whole(path) as temporary:
            _copy(state / OUTPUTS / path.name, temporary)
    log.info(
        "the same was finished before, and what it made is written again; remove %s to do it anew",
        state,
    )
    return True


def is_finished(state: Path) -> bool:
    """Tell whether outputs are kept in `state`."""
    return (state / OUTPUTS).exists()


def forget(states: Path) -> None:
    """Remove the folders in `states` in which outputs are kept."""
    for kept in states.glob(f"*/{OUTPUTS}"):
        shutil.rmtree(kept.parent)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
