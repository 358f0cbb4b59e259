"""The diff that MLflow keeps of changes without a commit: it has no secrets, and applies."""

import subprocess
from pathlib import Path

import pytest

from emotion_detection.tracking.diff import DIFF_VARIABLE, git_diff, without_secrets

AWS = "AKIA" + "Q3EXAMPLEEXAMPLE"  # in two parts, or scanners of repositories would report it
LONG = "a1" * 16


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a commit, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\n\n")
    (tmp_path / "old.py").write_text("".join(f"line_{n} = {n}\n" for n in range(9)))
    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=Begin")
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def test_a_diff_has_no_new_file_and_no_secret_and_applies(repository: Path) -> None:
    assert git_diff() == b""
    changed = f"seed: 1\nlr: 0.5\napi_key: {LONG}\nname: caf\udce9\n\n"
    (repository / "params.yaml").write_text(changed, "utf-8", "surrogateescape")
    (repository / ".env").write_text("SMTP=hunter2\n")
    git("add", ".env")
    git("mv", "old.py", "new.py")
    diff = git_diff()
    assert diff.startswith(b"Left out, since the commit has no such file: .env, new.py\n")
    assert b"hunter2" not in diff
    assert LONG.encode() not in diff
    git("reset", "--quiet", "--hard")
    subprocess.run(["git", "apply"], input=diff, check=True)
    applied = (repository / "params.yaml").read_text("utf-8", "surrogateescape")
    assert applied == changed.replace(LONG, "***")
    assert not (repository / "old.py").exists()


def test_a_diff_is_left_out_on_demand_and_cut_where_it_is_large(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "params.yaml").write_text("x: 1234567\n" * 100_000)
    diff = git_diff()
    assert len(diff) < 1.1e6
    assert diff.endswith(b" bytes more\n")
    monkeypatch.setenv(DIFF_VARIABLE, "0")
    assert git_diff() == b""


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("+DB_PASSWORD=hunter2 with spaces", "+DB_PASSWORD=***"),
        ("-password: hunter2", "-password: ***"),
        (' {"token": "abc", "seed": 3}', ' {"token": "***", "seed": 3}'),
        ("+export GITLAB_TOKEN='abc'", "+export GITLAB_TOKEN='***'"),
        (f"+KAGGLE_KEY={LONG}", "+KAGGLE_KEY=***"),
        (f'+{{"username": "anna", "key": "{LONG}"}}', '+{"username": "anna", "key": "***"}'),
        ("+login --user anna --password hunter2", "+login --user anna --password ***"),
        ('+curl -H "Authorization: Bearer abcdefgh"', '+curl -H "Authorization: Bearer ***"'),
        (f"+id {AWS} in us", "+id *** in us"),
        ("@@ -1 +1 @@ SECRET = hunter2", "@@ -1 +1 @@ SECRET = ***"),
        ("+https://anna:hunter2@example.org/x", "+https://example.org/x"),
        ("+mAx4" + "Qz9/" * 12 + "==", "+***"),
        # These are none.
        ("+lr: 0.001", "+lr: 0.001"),
        (f"+  md5: {LONG}", f"+  md5: {LONG}"),
        (f"+    --hash=sha256:{LONG}{LONG} \\", f"+    --hash=sha256:{LONG}{LONG} \\"),
        ("+author: Anna", "+author: Anna"),
        ("+src/emotion_detection/tracking/diff.py", "+src/emotion_detection/tracking/diff.py"),
    ],
)
def test_what_looks_like_a_secret_is_masked(line: str, kept: str) -> None:
    assert without_secrets(line) == kept


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("+token = tokens[0]", "+token = tokens[0]"),
        ("+def login(password: str, *, token: str = 'abc')", None),
        ('+os.environ["API_TOKEN"] = f"abc"', '+os.environ["API_TOKEN"] = f"***"'),
        ('+password = ""', '+password = ""'),
        ("+key = lambda row: row.name", "+key = lambda row: row.name"),
    ],
)
def test_code_stays_as_it_is_but_for_its_strings(line: str, kept: str | None) -> None:
    _, _, masked = without_secrets(f"diff --git a/x.py b/x.py\n{line}").partition("\n")
    assert masked == (kept or line.replace("abc", "***"))


def test_a_private_key_is_masked_to_its_end() -> None:
    begin, end = (f"-----{edge} RSA PRIVATE KEY-----" for edge in ("BEGIN", "END"))
    diff = f"+{begin}\n+MIIEowIBAAKCAQ\n+dg==\n+{end}\n+seed: 1"
    assert without_secrets(diff) == f"+{begin}\n+***\n+***\n+{end}\n+seed: 1"
