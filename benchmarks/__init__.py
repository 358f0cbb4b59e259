"""What this project's speed is, always beside other code doing the same work on the same machine.

`make bench` runs every section and writes docs/benchmarks.md.
"""
