"""What a stage has made, kept until its end is noted.

A stage that is stopped after its work and before its end is noted is run again, and its outputs are
removed first. It must not do its work, and log its run, a second time.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from emotion_detection import paths
from emotion_detection.console import log
from emotion_detection.files import atomic

OUTPUTS = "outputs"


def keep(outputs: Sequence[Path], state: Path) -> None:
    """Make copies of `outputs`, files and folders of different names, all that is in `state`."""
    kept = _kept(state)
    with atomic(kept) as folder:
        folder.mkdir()
        for path in outputs:
            _copy(path, folder / path.name)
    for path in state.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def restore(outputs: Sequence[Path], state: Path) -> bool:
    """Write `outputs` again if they are kept in `state`, and nothing was noted since.

    Gives False otherwise: who runs a stage again after that wants it done anew.
    """
    kept = _kept(state)
    if not kept.exists():
        return False
    for path in outputs:
        with atomic(path) as temporary:
            _copy(kept / path.name, temporary)
    log.info(
        "the same was finished before, and what it made is written again; remove %s to do it anew",
        state,
    )
    return True


def forget(states: Path) -> None:
    """Remove the folders in `states` in which outputs are kept."""
    for state in {kept.parent for kept in states.glob(f"*/{OUTPUTS}-*")}:
        shutil.rmtree(state)


def _kept(state: Path) -> Path:
    noted = paths.NOTES.read_bytes() if paths.NOTES.exists() else b""
    return state / f"{OUTPUTS}-{hashlib.sha256(noted).hexdigest()[:16]}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
