"""The code of a process that logs as a stage does."""

STAGE = """
import sys, time
from pathlib import Path
from emotion_detection import console
from emotion_detection.tracking import runs
from emotion_detection.data.dataset import Dataset

def main():
    dataset = Dataset.open(Path(sys.argv[1]))
    with runs.run("tune", note="", dataset=dataset, params={}, tags={}) as run_id:
        with runs.child("trial 01", params={"filters": 8}, tags={"stage": "trial"}):
            runs.log_epoch({"loss": 1.5}, 1)
            print(run_id, flush=True)
            time.sleep(600)

console.run(main)
"""
