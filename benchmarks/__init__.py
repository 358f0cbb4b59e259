"""The speed of this project, beside other code that does the same work on the same machine.

`make bench` runs every section and writes docs/benchmarks.md.
"""
