"""Facial emotion recognition: from a folder-per-class archive to a tracked, evaluated model.

In Python, `import emotion_detection as ed` gives `ed.load_model`, `ed.Dataset` and `ed.evaluate`.
Each is imported at its first use, since TensorFlow takes seconds.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emotion_detection.data.dataset import Dataset
    from emotion_detection.evaluation.evaluate import evaluate
    from emotion_detection.inference.model import load_model

    __version__: str

__all__ = ["Dataset", "__version__", "evaluate", "load_model"]

# Read when TensorFlow is first imported. It reports a machine without a GPU as an error; what
# fails still raises.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow would take a GPU's whole memory, and leave none to another worker or job on it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# TensorFlow turns oneDNN on by itself only on recent processors; on one with AVX2 alone a network
# trains nearly three times as fast with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_MODULES = {
    "Dataset": "emotion_detection.data.dataset",
    "evaluate": "emotion_detection.evaluation.evaluate",
    "load_model": "emotion_detection.inference.model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("emotion-detection")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
