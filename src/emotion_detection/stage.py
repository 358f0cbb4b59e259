"""What surrounds a stage that computes: state key, resume, completed outputs, MLflow run, report.

A stage's state lies in a folder that is named by its state key: a digest of the params and
dependencies that dvc.yaml lists for the stage. Work that was interrupted goes on from there. Work
that was completed is cached there, since DVC deletes a stage's outputs before it runs it again. It
lies in the project that a person opened: an experiment that is queued again goes on from there too.
"""

import ast
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import pandas as pd
from matplotlib.figure import Figure

import emotion_detection
from emotion_detection import paths
from emotion_detection.console import UserError, first_line, log
from emotion_detection.data.dataset import INDEX_FILE, SUMMARY_FILE, Dataset
from emotion_detection.data.splits import Split
from emotion_detection.figures.style import save
from emotion_detection.files import atomic, cell, locked, read_yaml, remove, write_json
from emotion_detection.models import saving
from emotion_detection.models.hardware import be_deterministic, device, resolve_precision
from emotion_detection.settings import recipes
from emotion_detection.settings.params import PARAMS, Params
from emotion_detection.settings.sections import flat
from emotion_detection.tracking import runs
from emotion_detection.tracking.tags import PRECISION_WHY, RECIPE, SELECTED_ON_TEST, flag

CODE = Path(emotion_detection.__file__).parents[2]

OUTPUTS, LOCK_DIGEST = "outputs", "lock_digest.txt"

STATES_KEPT = 4
"""Completed states of a stage that are kept, for a person who goes back to params that were tried
before, and as many interrupted ones."""


@dataclass(frozen=True)
class Definition:
    """A stage as dvc.yaml has it."""

    name: str
    deps: tuple[Path, ...]
    params: tuple[str, ...]
    outs: tuple[Path, ...]

    def values(self, params: Params) -> dict[str, Any]:
        """Return the params that the stage lists, by dotted name."""
        return {
            name: value
            for name, value in flat(params).items()
            if any(name == listed or name.startswith(f"{listed}.") for listed in self.params)
        }


def definition(name: str) -> Definition:
    """Return the stage `name` of dvc.yaml, of this folder or else of the code that runs.

    Raises:
        UserError: if there is no dvc.yaml or no such stage in it.

    """
    try:
        stage = read_yaml(_of_code(paths.DVC_FILE))["stages"][name]
    except (KeyError, TypeError) as error:
        raise UserError(f"{paths.DVC_FILE}: has no stage {name}") from error
    return Definition(
        name,
        deps=tuple(map(Path, stage["deps"])),
        params=tuple(stage.get("params", ())),
        outs=tuple(map(Path, stage["outs"])),
    )


class Stage:
    """A stage at work: `folder` is its state, `precision` what it computes in."""

    def __init__(
        self,
        name: str,
        params: Params,
        dataset: Dataset,
        *,
        shared_over: Sequence[str] = (),
        also: Sequence[str] = (),
    ) -> None:
        """Find the state of stage `name` for `params` and `dataset`.

        What lies in `shared` is the same whatever the params `shared_over` are. The state depends
        on the params `also` too, after whose change DVC does not run the stage again.
        """
        self.definition = definition(name)
        self.dataset = dataset
        self.precision, self._why = resolve_precision(params.precision)
        if params.deterministic:
            be_deterministic(params.seed)
        listed = replace(self.definition, params=(*self.definition.params, *also))
        self.params = listed.values(params)
        if "precision" in self.params:
            self.params["precision"] = self.precision
        varying = {key: self.params[key] for key in shared_over}
        constant = {key: value for key, value in self.params.items() if key not in varying}
        code = {path.as_posix(): self._content(path) for path in self.definition.deps}
        self.shared = paths.state() / name / _digest({"params": constant, "deps": code})
        self.folder = self.shared / _digest(varying) if varying else self.shared
        self._run_id: str | None = None
        self._alone = contextlib.ExitStack()

    @property
    def params_digest(self) -> str:
        """A digest of the stage's params alone, 16 hex digits."""
        return _digest(self.params)

    def announce(self, work: str) -> None:
        """Log what the stage is about to do, and on what."""
        precision = [self.precision] if "precision" in self.params else []
        machine = ", ".join([device(), *precision])
        log.info("%s: %s; %s", self.definition.name, work[0].lower() + work[1:], machine)

    @property
    def report(self) -> Path:
        """The stage's report folder."""
        return paths.REPORTS / self.definition.name

    def _content(self, path: Path) -> str:
        if path != paths.DATASET:
            return content_digest(_of_code(path))
        # The digest knows images as they were decoded; another resizing gives other pixels.
        values = [self.dataset.digest, self.dataset.pixels]
        if self.definition.name == "evaluate":
            # Its report has file names and the source too, which no network depends on.
            values += [content_digest(path / name) for name in (INDEX_FILE, SUMMARY_FILE)]
        return " ".join(values)

    # Resume

    def restore(self) -> bool:
        """Write the outputs again if they were completed before; return whether they were.

        They are not where dvc.lock has the stage as it is now: whoever runs it all the same wants
        it done anew, so its state is cleared. If they were not, no other process works on the state
        until `complete`: this one waits for it.
        """
        self._wait()
        if self._restored():
            self._alone.close()
            return True
        return False

    def _wait(self) -> None:
        """Take the lock of the state: two queued experiments may begin with the same search."""
        lock = paths.state_lock(self.shared)
        if not self._alone.enter_context(locked(lock)):
            log.info("another process works in %s; waiting for it", self.shared)
            self._alone.enter_context(locked(lock, wait=True))

    def _restored(self) -> bool:
        kept = self.folder / OUTPUTS
        if not kept.exists():
            return False
        noted = _lock_digest() != (kept / LOCK_DIGEST).read_text(encoding="utf-8")
        if noted and is_in_lock_file(self.definition):
            remove(self.shared)
            return False
        for path in self.definition.outs:
            with atomic(path) as temporary:
                _copy(kept / path.name, temporary)
        self.shared.touch()
        log.info(
            "%s: same params, data and code as before; its outputs are restored from %s "
            "(`dvc repro --force %s` runs it anew)",
            *(self.definition.name, self.folder, self.definition.name),
        )
        return True

    def complete(self) -> None:
        """Cache the outputs, and remove the oldest states of the stage."""
        with atomic(self.folder / OUTPUTS) as folder:
            folder.mkdir()
            # Where dvc.lock has the stage already, its content cannot tell that this end is noted.
            noted = "forced" if is_in_lock_file(self.definition) else _lock_digest()
            (folder / LOCK_DIGEST).write_text(noted, encoding="utf-8")
            for path in self.definition.outs:
                _copy(path, folder / path.name)
        self.shared.touch()
        completed, interrupted = self._states()
        for state in (*completed[:-STATES_KEPT], *interrupted[:-STATES_KEPT]):
            with locked(paths.state_lock(state)) as alone:
                if alone:
                    remove(state)
        self._alone.close()

    def _states(self) -> tuple[list[Path], list[Path]]:
        """Return the stage's folders of completed and of other states, the oldest first."""
        states = [state for state in self.shared.parent.glob("*/") if state.name[0] != "."]
        states.sort(key=lambda state: state.stat().st_mtime)
        completed = [state for state in states if any(state.rglob(OUTPUTS))]
        return completed, [state for state in states if state not in completed]

    # MLflow

    @contextlib.contextmanager
    def run(
        self, *, note: str, rows: Split, params: Mapping[str, Any] | None = None
    ) -> Iterator[str]:
        """Log to the stage's own MLflow run while the block lasts, and yield its id.

        An interrupted stage goes on in the run that it began. `params` are logged besides those of
        the stage. In `note`, {data} stands for the data's name. The end of the block completes the
        stage.
        """
        if rows.selected_on_test:
            log.warning(
                "%s: split.validation = test: the choice is made on the test images, so their "
                "scores will be too good",
                self.definition.name,
            )
        file = self.folder / paths.RUN_FILE
        begun = runs.load_run_id(file)
        others = [state for state in self._states()[1] if state != self.shared]
        interrupted = [state for state in others if _is_free(state)]
        if interrupted and begun is None:
            log.info(
                "%s: starts anew: %d interrupted with other params, data or code wait in %s",
                *(self.definition.name, len(interrupted), self.shared.parent),
            )
        with runs.run(
            self.definition.name,
            note=note,
            dataset=self.dataset,
            params={**self.params, **(params or {})},
            tags={
                RECIPE: recipes.held() or PARAMS.name,
                SELECTED_ON_TEST: flag(rows.selected_on_test),
                PRECISION_WHY: self._why,
            },
            run_id=begun,
        ) as run_id:
            runs.save_run_id(file, run_id)
            # It is worked on now, and not the oldest state.
            self.shared.touch()
            self._run_id = run_id
            yield run_id
        self.complete()

    @contextlib.contextmanager
    def logging_to(
        self, run: contextlib.AbstractContextManager[str | None]
    ) -> Iterator[str | None]:
        """Log to a run of another stage while the block lasts; its end completes the stage.

        None says that the run is gone, and nothing is logged.
        """
        with run as run_id:
            self._run_id = run_id
            if run_id is not None:
                runs.set_tags({RECIPE: recipes.held() or PARAMS.name})
            yield run_id
        self.complete()

    def save_run_id(self, path: Path) -> None:
        """Write down at `path` which run the stage logs to, if it logs to one."""
        if self._run_id is None:
            write_json(path, {"run_id": None})
        else:
            runs.save_run_id(path, self._run_id)

    # Report

    def write_so_far(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write tables into the report folder while the stage works; `write` replaces them."""
        for name, table in tables.items():
            with atomic(self.report / f"{name}.csv") as path:
                _write_table(table, path)

    def write(
        self,
        metrics: Mapping[str, float],
        *,
        tables: Mapping[str, pd.DataFrame] | None = None,
        figures: Mapping[str, Figure] | None = None,
        more_metrics: Mapping[str, float] | None = None,
        more_files: Callable[[Path], None] | None = None,
        tags: Mapping[str, str] | None = None,
        headline: str | None = None,
    ) -> None:
        """Write the report folder, and log it, under the same names.

        `metrics` are what DVC shows and MLflow too; `more_metrics` and `tags` are for MLflow alone.
        `more_files` writes into the folder. `headline` is the result in a line, which the run's
        description begins with.
        """
        with atomic(self.report) as folder:
            folder.mkdir()
            write_json(folder / paths.METRICS, dict(metrics))
            for name, table in (tables or {}).items():
                _write_table(table, folder / f"{name}.csv")
            for name, figure in (figures or {}).items():
                save(figure, folder / f"{name}.png")
            if more_files is not None:
                more_files(folder)
        if self._run_id is not None:
            # Those of the logged model stand beside the model as well.
            of_model = self.dataset if self.definition.name == "evaluate" else None
            runs.log_metrics({**metrics, **(more_metrics or {})}, of_model)
            runs.set_tags(tags or {})
            if headline is not None:
                runs.log_headline(headline)
            runs.log_files(self.report, self.definition.name)


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table = table.rename(columns=cell)
    for name in table.select_dtypes(exclude="number"):
        table[name] = table[name].map(cell)
    # Bytes of file names that are no text stay as they are.
    table.to_csv(path, index=False, lineterminator="\n", errors="surrogateescape")


def _of_code(path: Path) -> Path:
    """Return `path`, or where it lies beside the code that runs if it is not in this folder."""
    beside = CODE / path
    return beside if not path.exists() and beside.exists() else path


def content_digest(path: Path) -> str:
    """Return a digest of a file or folder that is the same where its meaning is.

    Comments, docstrings and layout of Python code make no difference.

    Raises:
        UserError: if there is nothing at `path`.

    """
    if path.is_dir():
        names = sorted(file for file in path.rglob("*") if file.is_file())
        return _digest({file.relative_to(path).as_posix(): content_digest(file) for file in names})
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run `dvc repro`") from error
    if path.suffix == ".py":
        data = ast.dump(_without_docstrings(ast.parse(data))).encode()
    return hashlib.sha256(data).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
    return tree


def is_in_lock_file(stage: Definition) -> bool:
    """Return whether dvc.lock has the stage's params and dependencies as they are now."""
    try:
        stages = read_yaml(paths.LOCK_FILE)["stages"]
        noted = stages[stage.name]
        made = {out["path"]: out["md5"] for each in stages.values() for out in each["outs"]}
        params = read_yaml(PARAMS)
        return all(
            _value(params, name) == value
            for name, value in noted.get("params", {}).get(PARAMS.name, {}).items()
        ) and all(
            dep["md5"] == (made.get(dep["path"]) or _md5(Path(dep["path"])))
            for dep in noted["deps"]
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def _value(params: Mapping[str, Any], name: str) -> Any:
    value: Any = params
    for part in name.split("."):
        value = value[part]
    return value


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _lock_digest() -> str:
    noted = paths.LOCK_FILE.read_bytes() if paths.LOCK_FILE.exists() else b""
    return hashlib.sha256(noted).hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _is_free(state: Path) -> bool:
    with locked(paths.state_lock(state)) as alone:
        return alone


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def load_networks() -> list[keras.Model]:
    """Return the networks that train left for the model, as `load_network` does.

    Raises:
        UserError: if there is none, or one cannot be read.

    """
    networks = [load_network(path, "train") for path in paths.networks()]
    if not networks:
        raise UserError(f"{paths.NETWORKS}: holds no network; run `dvc repro train`")
    return networks


def load_network(path: Path, stage: str) -> keras.Model:
    """Return the network that `stage` saved at `path`: images (N, H, W, C) uint8 -> (N, classes).

    Raises:
        UserError: if there is none, or it cannot be read.

    """
    try:
        return saving.load(path)[0]
    except Exception as error:  # Keras lets nearly any exception out of a malformed file.
        raise UserError(
            f"{path}: cannot be loaded ({first_line(error)}); run `dvc repro {stage}`"
        ) from error
