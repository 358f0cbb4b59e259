"""Print the address of MLflow's page of the runs, for `make ui`."""

import argparse

from emotion_detection.console import log, run
from emotion_detection.tracking.store import runs_address


def main() -> None:
    """Print the address; the pages are served at the host and port that are given."""
    parser = argparse.ArgumentParser(prog="python -m emotion_detection.tracking.address")
    parser.add_argument("server", help="as http://127.0.0.1:5000")
    server = parser.parse_args().server
    run(lambda: log.info("Ctrl-C ends it; open %s", runs_address(server)))


if __name__ == "__main__":
    main()
