"""The use of a model: photos, pages, other programs."""
