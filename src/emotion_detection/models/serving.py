"""The model as MLflow serves it: images in, labels and probabilities out.

MLflow copies this file and the two it imports, data/image.py and models/saving.py, into a logged
model and runs them from there, where there is no package. `tracking.models.log_model` lists them.
"""

import base64
import binascii
import importlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel, PythonModelContext

log = logging.getLogger("emotion_detection")

COLUMN = "image"
BATCH = 256


class BadRequestError(MlflowException):
    """A request that cannot be answered, with HTTP status 400."""

    def __init__(self, reason: str) -> None:
        """Make an error whose message to the client is `reason` alone."""
        super().__init__(reason, BAD_REQUEST)
        self._reason = reason

    def serialize_as_json(self) -> str:
        """Return the response, without the request that the server puts before the message."""
        self.message = self._reason
        return str(super().serialize_as_json())


class EmotionModel(PythonModel):
    """Labels images; each is the bytes of a file, those bytes as base64 text, or pixels.

    A path is not taken: behind HTTP it would open the server's files.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, ready to answer the first request as quickly as the next."""
        # As the package's __init__, which is not there, and why: before TensorFlow is imported.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        # Modules of their own in a logged model, and importable only once MLflow loads it.
        self._image = importlib.import_module("image")
        saving = importlib.import_module("saving")
        path = Path(context.artifacts["network"])
        model, self._classes = saving.load(path)
        if notice := saving.notes(path).get("notice"):
            log.warning("%s", notice)
        self._shape: tuple[int, int, int] = model.input_shape[1:]
        self._network = saving.compiled(model)

    # The only hint that MLflow takes without enforcing it; other types come too.
    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Return a row an image: its label, and the probability of every class by name.

        `model_input` is one encoded image, a list of images, pixels (N, H, W[, C]), or a data frame
        or dict with the images in the column `image`. An image is encoded as `open_image` takes it,
        of any size, as bytes or base64 text; or it is pixels (H, W, C) as the network takes them,
        whole numbers from 0 to 255, where C may be left out if it is 1.

        Raises:
            BadRequestError: with the number of the first image that is none of these.

        """
        try:
            return self._answer(model_input)
        except BadRequestError:
            raise
        except Exception as error:
            # The server would send the client the traceback, with the paths of this machine.
            log.warning("a request failed", exc_info=True)
            raise BadRequestError(f"it cannot be answered ({type(error).__name__})") from None

    def _answer(self, model_input: Any) -> pd.DataFrame:
        images = _images(model_input)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH):
            pixels = [
                self._pixels(image, number)
                for number, image in enumerate(images[start : start + BATCH], start)
            ]
            for probabilities in self._network(np.stack(pixels)):
                rows.append(
                    {
                        "label": self._classes[int(probabilities.argmax())],
                        "probabilities": dict(
                            zip(self._classes, probabilities.tolist(), strict=True)
                        ),
                    }
                )
        return pd.DataFrame(rows)

    def _pixels(self, image: Any, number: int) -> np.ndarray:
        """Return the pixels of one image, (H, W, C) uint8."""
        if isinstance(image, str):
            try:
                # Many programs break base64 into lines.
                image = base64.b64decode("".join(image.split()), validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadRequestError(
                    f"image {number}: not base64 ({error}); text has to be an image file's bytes "
                    "in base64, and not a path"
                ) from error
        if isinstance(image, (bytes, bytearray)):
            height, width, channels = self._shape
            mode = "grayscale" if channels == 1 else "rgb"
            try:
                pixels = self._image.decode(bytes(image), (height, width), mode)
            except self._image.BadImageError as error:
                raise BadRequestError(f"image {number}: {error}") from error
            return np.frombuffer(pixels, np.uint8).reshape(self._shape)
        if isinstance(image, (list, np.ndarray)):
            return self._checked(image, number)
        raise BadRequestError(
            f"image {number}: {_kind(image)}; give the bytes of a PNG or JPEG file, those as "
            "base64 text, or pixels"
        )

    def _checked(self, image: list[Any] | np.ndarray, number: int) -> np.ndarray:
        try:
            pixels = np.array(image)
        except ValueError as error:
            raise BadRequestError(f"image {number}: its rows differ in length") from error
        if pixels.ndim == 2 and self._shape[2] == 1:
            pixels = pixels[..., np.newaxis]
        if pixels.shape != self._shape:
            raise BadRequestError(
                f"image {number}: its shape is {pixels.shape}, and pixels must be {self._shape}: "
                "height, width, channels; an encoded image may have any size"
            )
        if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            raise BadRequestError(
                f"image {number}: its pixels are not all whole numbers from 0 to 255"
            )
        return pixels.astype(np.uint8)


def _images(model_input: Any) -> list[Any]:
    """Return the images of an input, whichever of the forms that `predict` names it has."""
    if isinstance(model_input, (pd.DataFrame, dict)):
        if COLUMN not in model_input:
            raise BadRequestError(
                f'no images: give each a key or column "{COLUMN}", as in '
                f'{{"dataframe_records": [{{"{COLUMN}": "<base64>"}}]}}'
            )
        model_input = model_input[COLUMN]
    if isinstance(model_input, np.ndarray) and model_input.ndim < 2:
        model_input = model_input.tolist()  # MLflow makes such an array of texts in a request
    if isinstance(model_input, (str, bytes, bytearray)):
        model_input = [model_input]
    if not isinstance(model_input, (list, tuple, np.ndarray, pd.Series)):
        raise BadRequestError(
            f"no images: the input is {type(model_input).__name__}; give encoded images or pixels "
            "(N, height, width, channels)"
        )
    # A request of records without a data frame is a list of dicts.
    images = [image.get(COLUMN) if isinstance(image, dict) else image for image in model_input]
    if not images:
        raise BadRequestError("no images: the request is empty")
    return images


def _kind(image: Any) -> str:
    # What a data frame puts where a record has no such key is a float too.
    if image is None or (isinstance(image, float) and image != image):
        return f'the key "{COLUMN}" is missing or null'
    return f"it is {type(image).__name__} {image!r:.40}"


set_model(EmotionModel())
