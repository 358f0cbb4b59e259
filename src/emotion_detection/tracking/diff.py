"""The changes that no commit has, as MLflow keeps them: without new files and without secrets."""

import os
import re

from emotion_detection.files import git
from emotion_detection.tracking.store import hidden

DIFF_VARIABLE = "EMOTION_DETECTION_GIT_DIFF"

DIFF_BYTES = 2**20

MASK = "***"

_NAME = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|api[_-]?key|auth(?![a-z]))[\w-]*"
# Between a name and its value: name = value, "name": value, name: type = value, ["name"] = value.
_IS = r"""["'\]]{0,2}(?:\s*:\s*[\w.\[\], |]+?(?=\s*=))?\s*(?:=>|:=|=|:)\s*"""
_LONG = r"(?=\S{0,100}\d)[\w+/=.~-]{16,}"

_QUOTED = re.compile(rf"""(?i)({_NAME}{_IS}[bfru]{{0,2}}(["']))(?!\2).*?(?=\2|$)""")
_PLAIN = re.compile(rf"""(?i)({_NAME}{_IS})(?!["']|[bfru]{{1,2}}["'])\S.*""")
_KEY = re.compile(rf"""(?i)(key{_IS}(["']))({_LONG})(?=\2)""")
_PLAIN_KEY = re.compile(rf"(?i)(key{_IS})({_LONG})")
_OPTION = re.compile(rf"(?i)((?<!\S)--[\w-]*{_NAME}\s+)\S+")
_HEADER = re.compile(
    r"""(?i)(authorization["']?\s*[:=]\s*["']?(?:(?:basic|bearer|token)\s+)?|\bbearer\s+)"""
    r"[\w.~+/=-]{8,}"
)
_KNOWN = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsru]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|AIza[\w-]{35}|xox[abeprs]-[\w-]{10,}|pypi-[\w-]{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*)"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_PRIVATE = re.compile(r"-----(BEGIN|END) [A-Z ]*PRIVATE KEY")


def git_diff() -> bytes:
    """Return the diff of the tracked files to the commit, at most DIFF_BYTES of it.

    Files that the commit lacks are named in its first line and left out, and what looks like a
    secret is masked. It is empty without changes, and where EMOTION_DETECTION_GIT_DIFF is 0.
    """
    if os.environ.get(DIFF_VARIABLE) == "0":
        return b""
    # A text conversion may decrypt a file, and a new file may be taken for a renamed one.
    compared = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
    added = git(*compared, "--name-only", "-z", "--diff-filter=A", "HEAD").rstrip(b"\0")
    data = git(*compared, "--diff-filter=a", "HEAD")
    cut = len(data) - DIFF_BYTES
    if cut > 0:
        data = data[:DIFF_BYTES].rpartition(b"\n")[0]
    lines = without_secrets(data.decode("utf-8", "surrogateescape"))
    if added:
        names = os.fsdecode(added).replace("\0", ", ")
        lines = f"Left out, since the commit has no such file: {names}\n{lines}"
    if cut > 0:
        lines += f"\n... and {cut:,} bytes more"
    return f"{lines}\n".encode("utf-8", "surrogateescape") if lines else b""


def without_secrets(diff: str) -> str:
    """Return a diff with *** in place of what looks like a secret in any of its lines.

    That is the value of a name with password, secret, token and the like in it, in Python code only
    where it is a string; what has the form of a known service's token; and private keys.
    """
    lines, python, private = [], False, False
    for line in diff.split("\n"):
        if line.startswith("diff --git "):
            python, private = line.rstrip('"').endswith(".py"), False
        elif line.startswith("@@ "):
            private = False
        if begun := _PRIVATE.search(line):
            private = begun[1] == "BEGIN"
            lines.append(line)
        else:
            lines.append(line[:1] + (MASK if private else _masked(line[1:], python=python)))
    return hidden("\n".join(lines))


def _masked(line: str, *, python: bool) -> str:
    line = _QUOTED.sub(rf"\1{MASK}", line)
    line = _KEY.sub(rf"\1{MASK}", line)
    if not python:
        line = _PLAIN.sub(rf"\1{MASK}", line)
        line = _PLAIN_KEY.sub(rf"\1{MASK}", line)
        line = _OPTION.sub(rf"\1{MASK}", line)
    line = _HEADER.sub(rf"\1{MASK}", line)
    line = _KNOWN.sub(MASK, line)
    return _BASE64.sub(_unless_hex_or_word, line)


def _unless_hex_or_word(found: re.Match[str]) -> str:
    """Return the mask for random base64; digests and long words stay."""
    random = all(re.search(kind, found[0]) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return MASK if random else found[0]
