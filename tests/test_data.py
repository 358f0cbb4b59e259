"""An archive that is tracked by DVC goes through S3 into a fresh clone and its experiments."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from emotion_detection.data.synthetic import draw_sample
from tests.support.project import SMALL, Project

ARCHIVE = "data/faces.zip"
KEYS = {"access_key_id": "AKIDOFANNA", "secret_access_key": "s3cretOfAnna"}


@pytest.fixture
def s3() -> Iterator[str]:
    """Return the address of an S3 that has the bucket `faces`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    names = {f"aws_{name}": value for name, value in KEYS.items()}
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **names)
    client.create_bucket(Bucket="faces")
    yield address
    server.stop()


@pytest.mark.slow
def test_an_archive_goes_through_s3_into_a_clone_and_its_experiments(
    s3: str, tmp_path: Path
) -> None:
    project = Project.begin(tmp_path / "project", SMALL)
    draw_sample(tmp_path / "faces", train=60, test=30, image_size=16, seed=1)
    archive = project.root / ARCHIVE
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path / "faces")
    project.run("dvc", "add", ARCHIVE)
    project.run("dvc", "remote", "add", "--default", "storage", "s3://faces/dvc")
    project.run("dvc", "remote", "modify", "storage", "endpointurl", s3)
    for name, value in KEYS.items():
        project.run("dvc", "remote", "modify", "--local", "storage", name, value)
    project.commit("Add the faces")
    assert "1 file pushed" in project.run("dvc", "push", ARCHIVE)

    assert f"{ARCHIVE}.dvc" in project.run("git", "ls-files")
    assert ARCHIVE not in project.run("git", "ls-files").splitlines()
    committed = project.run("git", "log", "--patch", "--all")
    assert "endpointurl" in committed
    assert not any(value in committed for value in KEYS.values())

    project.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.env |= {f"AWS_{name.upper()}": value for name, value in KEYS.items()}
    clone.run("dvc", "pull", ARCHIVE)
    assert (clone.root / ARCHIVE).read_bytes() == archive.read_bytes()
    assert not (clone.root / ".dvc" / "config.local").exists()

    # Such an experiment runs where a queued one does, in a copy of what Git and DVC track.
    experiment = ("dvc", "exp", "run", "--temp", "--name", "real", "-S", f"ingest.source={ARCHIVE}")
    assert "60 train and 30 test images, 7 classes" in clone.run(*experiment, "ingest")
    clone.run("dvc", "exp", "branch", "real", "seen")
    assert f"- path: {ARCHIVE}" in clone.run("git", "show", "seen:dvc.lock")
