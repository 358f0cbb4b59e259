"""The networks, their files, and what serves them."""
