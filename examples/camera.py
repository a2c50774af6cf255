"""Run a bundle on the newest picture of a camera, a video, or a folder of pictures.

python examples/camera.py net.bundle 0                     # the first camera; needs opencv-python
python examples/camera.py net.bundle street.mp4 hub:50051  # a video, and a server
python examples/camera.py net.bundle photos/               # a folder; needs Pillow

The model must have one input: uint8 1 x height x width x 3, the bytes of an RGB picture.
`offload split --image` makes such an input.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from offload_runtimes import open_session


def pictures(source: str, height: int, width: int) -> Iterator[Any]:
    """Arrays of uint8 height x width x 3, as fast as the source gives them."""
    if Path(source).is_dir():
        from PIL import Image

        for path in sorted(Path(source).iterdir()):
            yield np.asarray(Image.open(path).convert("RGB").resize((width, height)))
            time.sleep(1 / 25)  # a camera of 25 pictures a second
        return
    import cv2

    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    while True:
        is_read, picture = camera.read()
        if not is_read:
            return
        yield cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), (width, height))


def main(bundle: str, source: str, server: str | None = None) -> None:
    """Print the largest class of each picture that is answered."""
    with open_session(bundle, server) as session:
        (value,) = session.get_inputs()
        _, height, width, _ = value.shape
        frames = enumerate({value.name: p[None]} for p in pictures(source, height, width))
        began_s, answered = time.monotonic(), 0
        # `latest` drops the pictures that are outdated when the device becomes free.
        for number, (scores, *_) in session.stream(frames, latest=True):
            answered += 1
            print(f"picture {number}: class {int(scores.argmax())}", flush=True)
        rate = answered / (time.monotonic() - began_s)
        print(f"{answered} answered ({rate:.1f}/s), {session.counts.dropped} dropped")


if __name__ == "__main__":
    main(*sys.argv[1:])
