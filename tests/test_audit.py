"""The audit of what is pinned: what fails it, and what does not."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
decision = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["decision"]


def report(*packages: Mapping[str, object]) -> str:
    """Return what pip-audit prints."""
    return json.dumps({"dependencies": packages, "fixes": []})


SOUND = {"name": "keras", "version": "3.15.1", "vulns": []}
UNKNOWN = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}
KNOWN = {
    "name": "pillow",
    "version": "12.0.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["12.0.1"], "aliases": []}],
}


@pytest.mark.parametrize(
    ("output", "errors", "said", "status"),
    [
        (report(SOUND, UNKNOWN), "", "no known vulnerability in 1 of 2 packages", 0),
        (report(SOUND, KNOWN), "", "pillow 12.0.0: PYSEC-2026-1, mended in 12.0.1", 1),
        (report(UNKNOWN), "", "nothing was audited", 0),
        ("", "ERROR: Tip: your network may be blocking this service.", "nothing was audited", 0),
        ("", "requests.exceptions.ProxyError: refused", "nothing was audited", 0),
        ("", "ERROR: requirement keras==3 does not contain a hash", "does not contain a hash", 1),
    ],
)
def test_only_a_known_vulnerability_or_a_broken_file_fails(
    output: str, errors: str, said: str, status: int
) -> None:
    message, found = decision(output, errors)
    assert said in message
    assert found == status


def test_offline_it_passes_and_says_so() -> None:
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, ".ci/audit.py"],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_PROXY": "", "no_proxy": ""},
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing was audited" in done.stdout
