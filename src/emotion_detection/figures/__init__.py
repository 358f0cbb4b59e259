"""Every plot of the project, in one look; each function returns a matplotlib figure."""
