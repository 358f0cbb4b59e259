"""A photo with one face, and where in it the face is."""

import skimage.data
from PIL import Image

from emotion_detection.inference.faces import Box

# What a box around it must hold, and must not reach beyond.
EYES_AND_MOUTH = (190, 90, 250, 155)
HEAD = (140, 10, 310, 210)


def astronaut() -> Image.Image:
    """Return the photo, 512x512 pixels in colour."""
    return Image.fromarray(skimage.data.astronaut())


def around_the_face(box: Box, shift: int = 0) -> bool:
    """Return whether `box` frames her face, where the photo is moved right by `shift` pixels."""
    left, top, right, bottom = box.corners
    inner, outer = EYES_AND_MOUTH, HEAD
    return (
        outer[0] <= left - shift <= inner[0]
        and outer[1] <= top <= inner[1]
        and inner[2] <= right - shift <= outer[2]
        and inner[3] <= bottom <= outer[3]
    )
