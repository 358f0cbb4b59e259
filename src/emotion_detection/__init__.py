"""Facial emotion recognition: from a folder-per-class archive to a tracked, evaluated model."""
