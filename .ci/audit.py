"""Fail where a pinned package has a known vulnerability; say so where nobody can be asked."""

import json
import re
import subprocess
import sys
from typing import Any

COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--requirement", "requirements-extras.txt"),
    *("--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"),
)
# How pip-audit ends where PyPI's advisories are out of reach, and not the requirements wrong.
OUT_OF_REACH = re.compile(r"your network may be blocking|ServiceError|requests\.exceptions\.")


def main() -> int:
    """Audit requirements-extras.txt, which has all of requirements.txt; give the exit status."""
    done = subprocess.run(COMMAND, text=True, capture_output=True, check=False)
    message, status = verdict(done.stdout, done.stderr)
    print(message, file=sys.stderr if status else sys.stdout)
    return status


def verdict(output: str, errors: str) -> tuple[str, int]:
    """Give what to say of a run of pip-audit, and the exit status."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except ValueError:
        if OUT_OF_REACH.search(errors):
            return "audit: PyPI's advisories cannot be reached; nothing was audited", 0
        return f"audit: pip-audit failed\n{errors}", 1
    found = [
        f"  {package['name']} {package['version']}: {known['id']}, mended in "
        f"{', '.join(known['fix_versions']) or 'no version'}"
        for package in packages
        for known in package.get("vulns", [])
    ]
    if found:
        return "\n".join(["audit: known vulnerabilities in requirements-extras.txt", *found]), 1
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return "audit: PyPI's advisories cannot be reached; nothing was audited", 0
    return f"audit: no known vulnerability in {len(asked)} of {len(packages)} packages", 0


if __name__ == "__main__":
    sys.exit(main())
