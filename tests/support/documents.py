"""The commands that README.md and docs/ name, and how each is known to work."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELLS = ("sh", "bash", "shell", "console")
PROGRAMS = (
    *("curl", "docker", "dvc", "emotion-detection", "export", "git", "kaggle", "make", "mlflow"),
    *("pip", "psql", "python", "python3", "source", "uv"),
)
"""The first word of a command, where a document does not mark it as one."""

RUN = {
    "dvc exp show --only-changed --drop '(data|models|reports|src|stages)/'": "",
    "dvc exp show": "",
    "emotion-detection clean": "",
    "dvc metrics diff EXP1 EXP2": "",
    "dvc plots diff EXP1 EXP2 --open": "",
    "emotion-detection predict photo.jpg --model models/model.keras": "",
    "dvc repro ingest": "",
    "dvc repro tune": "",
    "dvc repro export": "",
    "emotion-detection recipe quick --run -S ingest.source=data/emotion-detection-fer.zip": (
        "-S train.epochs=1 -S train.batch_size=32 -S network.filters=[8,8] "
        "-S network.kernel_sizes=[3,3] -S split.fraction=0.2 -S evaluate.corruption_images=0"
    ),
    "emotion-detection recipe notebook --run -S ingest.source=data/emotion-detection-fer.zip": (
        "-S train.epochs=1 -S train.batch_size=32 -S network.filters=[8,8] "
        "-S network.kernel_sizes=[3,3] -S evaluate.corruption_images=0"
    ),
    """dvc exp run -S "ingest.source='data/archive (1).zip'\"""": "ingest",
}
"""What test_pipeline.py runs in the small project, and what it adds to make it smaller still."""

ELSEWHERE = {
    "dvc repro": "test_pipeline.py: the project",
    "dvc checkout": "test_pipeline.py, after its experiments",
    "dvc exp run -S train.lr=1e-3": "test_pipeline.py, under a name",
    "dvc exp run --queue -S train.lr=1e-3": "test_pipeline.py, under a name",
    "dvc queue start --jobs 2": "test_pipeline.py",
    "mlflow ui": "test_pipeline.py, on a free port",
    "emotion-detection recipe --reset": "test_recipes.py",
    "emotion-detection recipe": "test_recipes.py",
    "emotion-detection send": "test_outages.py",
    "emotion-detection compare smoothing none": "test_seeds.py",
    "dvc exp run -S train.seeds=5 train": "test_pipeline.py",
    "dvc exp run -S split.folds=5": "test_pipeline.py",
    "dvc exp run -n smoothing -S train.seeds=5 -S train.label_smoothing=0.1 train": "likewise",
    "dvc exp run -n none -S train.seeds=5 -S train.label_smoothing=0 train": "likewise",
    "emotion-detection clean cache models": "test_clean.py",
    "dvc exp run -S ingest.source=PATH": "test_other_sets.py: the photos, by params.yaml",
    "dvc repro labels/dvc.yaml": "test_suspects.py runs its stage",
    "dvc exp run -S deterministic=true": "test_ensemble.py, by its stage",
    "dvc exp run -S ensemble.members=3": "test_pipeline.py",
    "dvc queue status": "test_pipeline.py",
    "python -m tests.support.reference": "test_documents.py: what it writes",
    "mlflow models serve -m models:/emotion-detection@champion --env-manager local --port 5001": (
        "test_serving.py, on a free port"
    ),
    "dvc exp run -S tune.workers=2": "test_scaling.py runs its stage",
    "dvc exp run -S tune.workers=4": "likewise",
    "python -m emotion_detection.data.kaggle": "test_kaggle.py",
    "dvc add data/emotion-detection-fer.zip": "test_data.py",
    "dvc remote add --default storage s3://BUCKET/PATH": "test_data.py",
    "dvc remote modify storage endpointurl https://HOST": "test_data.py",
    "dvc remote modify --local storage access_key_id KEY": "test_data.py",
    "dvc remote modify --local storage secret_access_key SECRET": "test_data.py",
    "dvc push data/emotion-detection-fer.zip": "test_data.py",
    "dvc pull data/emotion-detection-fer.zip": "test_data.py",
    "dvc queue start": "test_pipeline.py, with two jobs",
    "dvc exp run -S ingest.source=PATH -S 'ingest.image_size=[32,48]' "
    "-S ingest.color_mode=rgb": "test_other_sets.py: the photos, by params.yaml",
    "dvc exp run -S tune.trials=0 -S train.init_from=models:/emotion-detection/2": (
        "test_pipeline.py, with version 1"
    ),
    "dvc exp run -S export.onnx=true": "test_pipeline.py",
    "emotion-detection demo": "test_demo.py, on a free port",
    "emotion-detection predict --model models/onnx/model.onnx": "test_pipeline.py",
    "emotion-detection predict photo.jpg": "test_serving.py",
    "emotion-detection predict --model models/model.keras --annotate annotated photo.jpg faces": (
        "test_serving.py"
    ),
}
"""What another test runs."""

NOT_RUN = {
    **dict.fromkeys(
        (
            "git add data/emotion-detection-fer.zip.dvc",
            "git add .dvc/config",
            'git commit --message "Add the archive"',
            'git commit --message "Keep data on S3"',
        ),
        "test_data.py adds and commits all that there is",
    ),
    "dvc exp run --queue -S ingest.source=data/emotion-detection-fer.zip": (
        "test_data.py runs it with --temp, in the same kind of copy"
    ),
    "ray start --head --port 6379": "test_workers.py starts a cluster by Ray's own helper",
    "ray start --address 10.0.0.5:6379": "likewise",
    "RAY_ADDRESS=10.0.0.5:6379 dvc exp run -S tune.workers=8": "likewise, and searches there",
    "TF_NUM_INTRAOP_THREADS=4 TF_NUM_INTEROP_THREADS=4 dvc queue start --jobs 2": (
        "needs 8 cores; test_pipeline.py starts the queue"
    ),
    "mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts tracking:5000 "
    "--cors-allowed-origins http://tracking:5000 --backend-store-uri "
    "postgresql+psycopg2://mlflow:PASSWORD@database/mlflow --artifacts-destination s3://BUCKET": (
        "test_scaling.py starts one on loopback"
    ),
    "export MLFLOW_TRACKING_URI=http://tracking:5000": "test_scaling.py sets it to that server",
    "dvc remote add --default storage s3://BUCKET/dvc": "test_data.py adds one by another path",
    "dvc repro --pull": "pulls as `dvc pull` does",
    "dvc push": "test_data.py pushes the archive alone",
    "dvc pull": "test_data.py pulls the archive alone",
    "emotion-detection demo --model models/model.keras --port 8000": "test_demo.py says --port 0",
    "emotion-detection predict": "a name, not a command",
    "make .venv/.extras": "makes an environment from the package registry",
    "make .venv/.dev": "likewise",
    "pip install --require-hashes -r requirements-extras.txt": "needs the package registry",
    **dict.fromkeys(
        (
            "make gpu",
            "pip uninstall tensorflow-cpu",
            "pip install --require-hashes -r requirements-gpu.txt",
        ),
        "needs a GPU, and the package registry",
    ),
    "CUDA_VISIBLE_DEVICES=0 dvc repro": "needs a GPU",
    "pip install pre-commit": "needs the package registry",
    **dict.fromkeys(
        ("make audit", "make bench", "make clean", "make help", "make lint", "make lock"),
        "for those who change the project; CI runs lint, audit and test",
    ),
    "make compare": "makes an environment; test_pipeline.py runs its command",
    "make tune-workers": "makes an environment; then `dvc exp run -S tune.workers=2`",
    "python -m pytest -n 0 tests/training/test_augment.py": "a part of `make test`",
    "python -m pytest -m slow": "a part of .ci/run",
    **dict.fromkeys(
        (
            "dvc exp run -S tune.trials=50",
            "dvc exp run -S tune.trials=50 -S tune.repeats=2",
            "dvc exp run -S tune.trials=null -S tune.budget=8h",
        ),
        "takes long; test_pipeline.py searches with two trials",
    ),
    "dvc repro --force tune": "test_pipeline.py forces another stage",
    **dict.fromkeys(
        (
            "dvc exp run -S '~tune.space' -S '+tune.space={train.lr:{min:3e-4,max:1e-2,log:true}}'",
            "dvc exp run -S '+tune.space={train.batch_size:[64,128]}'",
        ),
        "test_params.py reads what DVC writes",
    ),
    "dvc exp run -S train.lr=5e-4": "test_pipeline.py sets it after a search",
    "dvc exp run -S train.epochs=50": "takes long; other params are set in the same way",
    "dvc exp run --queue -S train.lr=1e-2": "test_pipeline.py queues two others",
    "dvc exp run": "a name, not a command",
    "dvc metrics diff": "likewise",
    "git add .": "test_pipeline.py commits all that there is",
    'git commit --message "Train with a lower learning rate"': "likewise",
    "dvc exp apply EXP": "not a command as it stands: EXP is the reader's",
    "dvc exp branch EXP BRANCH": "likewise",
    "make data": "makes an environment; then `python -m emotion_detection.data.kaggle`",
    "make data DATASET=OWNER/NAME": "likewise",
    "make demo": "makes an environment; then `emotion-detection demo`",
    "make demo MODEL=models/model.keras": "likewise",
    "make repro": "makes an environment from the package registry",
    "make test": "makes an environment from the package registry",
    "make soak": "takes a quarter of an hour and more",
    "python -m tests.soak.faults --kills 50": "likewise",
    "python -m tests.soak.faults --kills 50 --signal INT": "likewise",
    **dict.fromkeys(
        (
            "python3 -m venv rivals",
            'rivals/bin/pip install ultralytics "opencv-python<5" tensorflow "setuptools<81"',
            "rivals/bin/pip install --no-deps fer",
        ),
        "needs the package registry",
    ),
    "python -m benchmarks.rivals --minutes 6 --python rivals/bin/python": (
        "needs that environment; test_rivals.py runs it without"
    ),
    "python -m benchmarks.rivals": "a name, not a command",
    "python -m tests.soak.together --store postgresql": "takes ten minutes",
    "python -m tests.soak.together --minutes 10 --store postgresql": "likewise",
    "python -m tests.soak.together --minutes 10 --store sqlite": "likewise",
    "python -m tests.soak.coverage": "takes minutes; test_intervals.py looks at fewer shares",
    "mlflow models serve": "a name, not a command",
    "make ui": "makes an environment; then test_store.py's address, and `mlflow ui`",
    "make send": "makes an environment; then `emotion-detection send`",
    "python3 -m venv .venv": "makes an environment",
    "source .venv/bin/activate": "needs that environment",
    "pip install --require-hashes -r requirements.txt": "needs the package registry",
    "pip install --no-deps --no-build-isolation --editable .": "needs that environment",
    "dvc exp run -S tune.trials=10 -S ingest.source=data/emotion-detection-fer.zip": (
        "the recipe notebook is run on the same zip"
    ),
    "emotion-detection recipe notebook --run -S split.validation=holdout "
    "-S ingest.source=data/emotion-detection-fer.zip": (
        "the recipe is run without it, and holdout is what params.yaml has"
    ),
    "dvc repro --force STAGE": "not a command as it stands: STAGE is the reader's",
    "python -m benchmarks --source data/emotion-detection-fer.zip --model models/model.keras": (
        "takes most of an hour, and needs the archive"
    ),
    **dict.fromkeys(
        (
            "emotion-detection recipe best --run -S ingest.source=data/emotion-detection-fer.zip",
            *(
                f"emotion-detection recipe best --run -S ensemble.members={members} "
                "-S ingest.source=data/emotion-detection-fer.zip"
                for members in (1, 2, 4)
            ),
        ),
        "takes hours; the other recipes are run on the same zip",
    ),
    "dvc exp run -S tune.trials=0": "the recipe notebook sets it too",
    "FUZZ_EXAMPLES=10000 python -m pytest tests/test_fuzzing.py": (
        "takes minutes; it runs with fewer"
    ),
    "mlflow models build-docker": "needs Docker",
    **dict.fromkeys(
        (
            """printf '{"dataframe_records": [{"image": "%s"}]}' """
            """"$(base64 < face.png | tr -d '\\n')" | """
            "curl -H 'Content-Type: application/json' -d @- http://127.0.0.1:5001/invocations",
            """printf '{"inputs": ["%s", "%s"]}' "$(base64 < face.png | tr -d '\\n')" """
            """"$(base64 < face.jpg | tr -d '\\n')" | """
            "curl -H 'Content-Type: application/json' -d @- http://127.0.0.1:5001/invocations",
        ),
        "test_serving.py runs it, block by block",
    ),
}
"""What no test runs as it stands, and why not."""


def commands(text: str) -> Iterator[str]:
    """Return the commands in a document's blocks, tables and sentences, each once."""
    found: dict[str, None] = {}
    outside = []
    inside: str | None = None
    block: list[str] = []
    for line in text.splitlines():
        if line.startswith("```"):
            if inside is not None:
                found |= dict.fromkeys(_of_block(inside, block))
            inside = line[3:].strip() if inside is None else None
            block = []
        elif inside is None:
            outside.append(line)
        else:
            block.append(line)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", " ".join(outside)):
        command = span.replace(r"\|", "|")
        if " " in command and _is_command(command):
            found[command] = None
    yield from found


def targets(text: str) -> set[str]:
    """Return what a link into a document may name: its anchors, and its headings as GitHub does."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", re.sub(r"<[^>]+>", "", text), re.MULTILINE)
    names = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return names | set(re.findall(r"<a id=[\"']([^\"']+)", text))


def _of_block(language: str, lines: list[str]) -> Iterator[str]:
    if language and language not in SHELLS:
        return
    text = re.sub(r"\\\n\s*", "", re.sub(r"\|\n\s*", "| ", "\n".join(lines)))
    for line in text.splitlines():
        command = re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ")
        if command and not command.startswith("#") and (language or _is_command(command)):
            yield command


def _is_command(text: str) -> bool:
    return re.sub(r"^(\w+=\S+ )+", "", text).split()[0] in PROGRAMS
