"""Facial emotion recognition: from a folder-per-class archive to a tracked, evaluated model."""

import os

# Read when TensorFlow is first imported. It reports a machine without a GPU as an error; what
# fails still raises.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow would take a GPU's whole memory, and leave none to another worker or job on it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# TensorFlow turns oneDNN on by itself only on recent processors; on one with AVX2 alone a network
# trains nearly three times as fast with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
