"""Ray's processes, as tests find them."""

import contextlib

import psutil


def training(driver: int) -> list[psutil.Process]:
    """Return Ray's processes that train for the process `driver`."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        # It may have just ended.
        with contextlib.suppress(psutil.Error):
            if "ray::_train" in " ".join(child.cmdline()):
                found.append(child)
    return found
