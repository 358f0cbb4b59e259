"""The command `emotion-detection`."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import emotion_detection
from emotion_detection import paths
from emotion_detection.console import UserError, call, log, progress, quiet, run
from emotion_detection.inference import detector
from emotion_detection.inference.formats import WRITERS

# What the help does not need is imported where it is: TensorFlow alone takes seconds.
if TYPE_CHECKING:
    from PIL import Image

    from emotion_detection.inference.faces import FaceFinder
    from emotion_detection.inference.pictures import Picture
    from emotion_detection.inference.predict import Prediction

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main() -> None:
    """Run the command as the terminal gave it."""
    arguments = parser().parse_args()
    run(lambda: _until_nobody_reads(lambda: arguments.act(arguments)))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog="emotion-detection",
        description="Train networks that recognize facial emotions, and use them.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of the project, and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    network = [_network_arguments(), _detector_arguments()]
    _add_recipe(commands)
    _add_stages(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_predict(commands, network)
    _add_demo(commands, network)
    _add_send(commands)
    _add_clean(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version; argparse's own action would have it looked up for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(emotion_detection.__version__)
        parser.exit()


def _network_arguments() -> argparse.ArgumentParser:
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--model",
        metavar="MODEL",
        help="a .keras or .onnx file or an MLflow URI (default: MLflow's "
        "emotion-detection@champion)",
    )
    network.add_argument(
        "--classes",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="the classes of a file that does not name them, in the order of its outputs",
    )
    network.add_argument(
        "--scale",
        type=_scale,
        metavar="1/255",
        help="what a .keras file from elsewhere has its pixels multiplied by, from 0 to 255",
    )
    return network


def _detector_arguments() -> argparse.ArgumentParser:
    faces = argparse.ArgumentParser(add_help=False)
    faces.add_argument(
        "--detector",
        metavar="DETECTOR",
        help="what finds the faces: yunet, haar, or the path of YuNet's file; none takes each "
        "picture whole (default: yunet if the network's classes are emotions, else none)",
    )
    faces.add_argument(
        "--no-detect",
        dest="detector",
        action="store_const",
        const=detector.NONE,
        help="the same as --detector none",
    )
    faces.add_argument(
        "--min-confidence",
        type=_confidence,
        default=detector.MIN_CONFIDENCE,
        metavar="P",
        help="leave out faces of which YuNet is less sure, from 0 to 1 (default: %(default)s)",
    )
    faces.add_argument(
        "--min-face",
        type=_pixels,
        default=detector.MIN_FACE,
        metavar="PIXELS",
        help="leave out faces that are less high (default: %(default)s)",
    )
    return faces


def _confidence(text: str) -> float:
    try:
        confidence = float(text)
    except ValueError:
        confidence = math.nan
    if not 0 <= confidence <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 0 to 1")
    return confidence


def _pixels(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    share = _confidence(text)
    if share in (0, 1):
        raise argparse.ArgumentTypeError(f"{text}: must be between 0 and 1, as 0.9")
    return share


def _scale(text: str) -> float:
    try:
        numerator, _, denominator = text.partition("/")
        scale = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, as 1, or a fraction, as 1/255")
    return scale


def _add_recipe(commands: Commands) -> None:
    command = commands.add_parser(
        "recipe",
        help="train with the settings of a recipe",
        description="Write a recipe, recipes/NAME.yaml, into params.yaml, and print what changes. "
        "A setting that the recipe does not name gets the value that Git has committed, but "
        "ingest.source, which stays. Without NAME, list the recipes.",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="a recipe, as quick")
    command.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="run it as an experiment: what follows goes to `dvc exp run`, as "
        "-S train.epochs=30 or --queue",
    )
    command.add_argument(
        "--reset",
        action="store_true",
        help="bring the committed params.yaml back, but for ingest.source",
    )
    command.set_defaults(act=_recipe, error=command.error)


def _add_stages(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train without DVC",
        description="Run the stages up to the model, without DVC, with the settings of "
        "params.yaml: sample (if it is the source), ingest, profile, tune, train and export. What "
        "was interrupted goes on, and tune, train and export are done again only if something that "
        "they depend on has changed.",
    )
    train.set_defaults(act=_train)
    evaluate = commands.add_parser(
        "evaluate",
        help="score the model without DVC",
        description="Run the stage evaluate, without DVC: score models/model.keras on the test "
        "split and write reports/evaluate/.",
    )
    evaluate.set_defaults(act=lambda _: _run_stages("evaluate"))


def _add_report(commands: Commands) -> None:
    command = commands.add_parser(
        "report",
        help="say where the report of the last evaluation is",
        description="Print the path of the report of the last evaluation.",
    )
    command.add_argument("--open", action="store_true", help="open it in the browser, too")
    command.set_defaults(act=_report)


def _add_compare(commands: Commands) -> None:
    command = commands.add_parser(
        "compare",
        help="say whether one experiment is better than another",
        description="Compare the validation accuracy of two experiments that trained several "
        "networks each, as train.seeds=5 does: their means, and the interval of the difference.",
    )
    command.add_argument("new", metavar="NEW", help="an experiment, branch or commit")
    command.add_argument(
        "old",
        nargs="?",
        default="workspace",
        metavar="OLD",
        help="what it is compared with (default: %(default)s, what lies here)",
    )
    command.set_defaults(act=_compare)


def _add_predict(commands: Commands, network: list[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "predict",
        parents=network,
        help="label the faces in pictures",
        description="Find the faces in pictures and label each with its emotion.",
        epilog="Exits with 0 if anything was labelled, else with 1.",
    )
    command.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="a picture, or a folder of pictures"
    )
    command.add_argument(
        "--camera", type=int, metavar="N", help="take a picture with camera N (0 is the first)"
    )
    command.add_argument(
        "--format",
        choices=WRITERS,
        default="table",
        help="table, json (an object a line) or csv; the last two give every class's probability",
    )
    command.add_argument(
        "--coverage",
        type=_share,
        metavar="SHARE",
        help="answer with as many classes as it takes to hold the right one for SHARE of the faces "
        "of each class, as 0.9; a table says 'not sure' where they are more than two",
    )
    command.add_argument(
        "--annotate",
        type=Path,
        metavar="FOLDER",
        help="write the pictures there with boxes and labels drawn on them",
    )
    command.set_defaults(act=_predict, error=command.error)


def _add_demo(commands: Commands, network: list[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "demo",
        parents=network,
        help="show a page that labels the faces in a photo",
        description="Serve a page, on this machine alone, that labels the faces in a photo or "
        "before the camera and shows what the network looked at.",
    )
    command.add_argument(
        "--port", type=int, default=5002, metavar="N", help="0 is any (default: %(default)s)"
    )
    command.set_defaults(act=_demo)


def _add_send(commands: Commands) -> None:
    command = commands.add_parser(
        "send",
        help="send MLflow what it has missed",
        description="Send MLflow what was logged while its server could not be reached.",
    )
    command.set_defaults(act=_send)


def _add_clean(commands: Commands) -> None:
    command = commands.add_parser(
        "clean",
        help="say what takes space, and remove it",
        description="Say how much space the states of searches and trainings (states), models in "
        "MLflow that nobody uses (models), runs deleted in MLflow (runs), copies of the project "
        "that killed experiments left (copies) and what DVC's cache keeps for nothing (cache) "
        "take; remove those that are named.",
    )
    command.add_argument(
        "parts",
        nargs="*",
        metavar="WHAT",
        help="states, models, runs, copies or cache (default: say it of all, remove nothing)",
    )
    command.add_argument("--dry-run", action="store_true", help="remove nothing")
    command.set_defaults(act=_clean, error=command.error)


def _until_nobody_reads(command: Callable[[], None]) -> None:
    try:
        command()
    except BrokenPipeError:
        # Who read the output has seen enough, and Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _recipe(arguments: argparse.Namespace) -> None:
    if arguments.name is None and arguments.run is not None:
        arguments.error("give a NAME before --run")
    if arguments.reset and arguments.name is not None:
        arguments.error("give a NAME or --reset, not both")
    from emotion_detection.settings import recipes

    if arguments.reset:
        changed = recipes.reset()
    elif arguments.name is None:
        heads = recipes.heads()
        width = max(map(len, heads), default=0)
        for name, head in heads.items():
            print(f"{name:<{width}}  {head}".rstrip())
        return
    else:
        changed = recipes.changes(arguments.name)
    for change in changed:
        print(change, flush=True)
    if arguments.run is not None:
        sys.exit(recipes.run(arguments.name, changed, arguments.run))
    if not arguments.reset:
        recipes.write(changed)
    if changed:
        log.info("params.yaml: %d settings changed; `dvc repro` runs the pipeline", len(changed))
    else:
        log.info("params.yaml: has these settings already")


def _train(_: argparse.Namespace) -> None:
    from emotion_detection.settings import params

    if not params.PARAMS.exists():
        raise UserError(f"{params.PARAMS}: not here; run this in the project's root folder")
    source = Path(params.load().ingest.source)
    sample = ("sample",) if source.resolve() == paths.SAMPLE.resolve() else ()
    _run_stages(*sample, "ingest", "profile", "tune", "train", "export")


def _run_stages(*names: str) -> None:
    """Run stages one after the other, as DVC does, and exit as the first one that fails."""
    for name in names:
        if not Path("stages", f"{name}.py").exists():
            raise UserError(f"stages/{name}.py: not here; run this in the project's root folder")
        log.info("stage %s", name)
        if status := call([sys.executable, "-m", f"stages.{name}"]):
            sys.exit(status)


def _report(arguments: argparse.Namespace) -> None:
    page = paths.EVALUATE / "report.html"
    if not page.exists():
        raise UserError(f"{page}: not here; `dvc repro` or `emotion-detection evaluate` writes it")
    print(page)
    if arguments.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _compare(arguments: argparse.Namespace) -> None:
    from emotion_detection.training.seeds import compared

    for line in compared(arguments.new, arguments.old):
        print(line)


def _predict(arguments: argparse.Namespace) -> None:
    if not arguments.paths and arguments.camera is None:
        arguments.error("give a PATH or --camera")

    from emotion_detection.data.dataset import BadFile
    from emotion_detection.inference import pictures, predict

    if arguments.camera is None and not any(path.exists() for path in arguments.paths):
        raise UserError(f"{', '.join(map(str, arguments.paths))}: there is no such file or folder")
    detector.check(arguments.detector)
    found = pictures.listed(arguments.paths)
    if arguments.camera is not None:
        found.append(pictures.camera(arguments.camera))
    if not found:
        raise UserError(f"{', '.join(map(str, arguments.paths))}: there is no picture in it")
    if arguments.annotate is not None:
        _refuse_overwriting(found, arguments.annotate)
    network = predict.load(arguments.model, arguments.classes, arguments.scale)
    finder = _finder(arguments, network.classes)
    # A name may hold any bytes, and the terminal may know few characters.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sets = None if arguments.coverage is None else network.sets(arguments.coverage)
    write = WRITERS[arguments.format](network.classes, sets)
    results: Iterator[Prediction | BadFile] = predict.predict(
        found, network, finder, keep=arguments.annotate is not None
    )
    if not sys.stdout.isatty():
        # Shown at once, since lines that come between would show it anyhow.
        results = progress(
            results, description="predict", unit="pictures", total=len(found), delay=0.0
        )
    labelled = crops = 0
    for result in results:
        if isinstance(result, BadFile):
            log.warning("%s: %s", result.path, result.reason)
            continue
        labelled += 1
        crops += result.guessed_crop
        write(result)
        if result.image is not None:
            _annotate(result, result.image, network.classes, arguments.annotate)
    if crops:
        log.info(
            "%d of %d pictures were taken for cropped faces, and whole",
            *(crops, labelled),
        )
    if not labelled:
        raise UserError(f"nothing was labelled in {len(found):,} pictures")


def _finder(arguments: argparse.Namespace, classes: Sequence[str]) -> "FaceFinder | None":
    return detector.load(arguments.detector, classes, arguments.min_confidence, arguments.min_face)


def _demo(arguments: argparse.Namespace) -> None:
    detector.check(arguments.detector)
    with quiet():
        from emotion_detection.inference import demo, predict

    model = predict.pinned(arguments.model)
    network = predict.load(model, arguments.classes, arguments.scale)
    finder = _finder(arguments, network.classes)
    demo.serve(network, predict.origin(model), arguments.port, finder)


def _send(_: argparse.Namespace) -> None:
    from emotion_detection.tracking.delivery import send

    send()


def _clean(arguments: argparse.Namespace) -> None:
    from emotion_detection.tracking.clean import PARTS, clean

    for name in arguments.parts:
        if name not in PARTS:
            arguments.error(f"{name}: choose from {', '.join(PARTS)}")
    clean(arguments.parts, dry_run=arguments.dry_run)


def _refuse_overwriting(found: "Sequence[Picture]", folder: Path) -> None:
    """Refuse to write annotated pictures over any file that is none."""
    from emotion_detection.inference.annotate import check_free
    from emotion_detection.inference.pictures import annotated_name

    read = {os.path.realpath(picture.path): picture.path for picture in found if picture.path}
    for picture in found:
        if over := read.get(os.path.realpath(folder / annotated_name(picture.file))):
            raise UserError(f"--annotate {folder}: it would overwrite {over}; give another folder")
        check_free(folder / annotated_name(picture.file))


def _annotate(
    prediction: "Prediction", image: "Image.Image", classes: tuple[str, ...], folder: Path
) -> None:
    # It comes with matplotlib.
    from emotion_detection.inference import annotate

    drawn = annotate.annotated(image, prediction.faces, classes)
    annotate.save(drawn, folder, prediction.picture.file)


if __name__ == "__main__":
    main()
