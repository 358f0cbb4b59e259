"""Scores of a model on the test images, the champion among registered models, the report."""
