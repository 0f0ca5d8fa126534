"""Says what is on photos, by a .tflite file that dmsflow exported: all that a program on a board needs.

    python examples/classify.py runs/flowers/model.tflite flowers/test photo.jpg

Beside NumPy and Pillow it takes LiteRT (`pip install ai-edge-litert`), and of dmsflow the kernels for 1-bit layers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dmsflow import native


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the .tflite file")
    parser.add_argument("classes", type=Path, help="folder with a folder for each class, as in training")
    parser.add_argument("photos", type=Path, nargs="+")
    arguments = parser.parse_args()
    names = sorted(each.name for each in arguments.classes.iterdir() if each.is_dir())
    kernels = load_delegate(str(native.library()), {"threads": "1"})
    network = Interpreter(str(arguments.model), num_threads=1, experimental_delegates=[kernels])
    network.allocate_tensors()
    (image,), (logits,) = network.get_input_details(), network.get_output_details()
    for photo in arguments.photos:
        pixels = read_pixels(photo, *image["shape"][2:])
        network.set_tensor(image["index"], pixels[None].astype(image["dtype"]))
        network.invoke()
        shares = np.exp(network.get_tensor(logits["index"])[0].astype(np.float64))
        shares /= shares.sum()
        print(f"{photo}: {names[shares.argmax()]}, {100 * shares.max():.0f} %")


def read_pixels(photo: Path, side: int, channels: int) -> NDArray[np.uint8]:
    """Pixels [side, side, channels] from 0 to 255, as in training: the shorter side resized, the centre square kept."""
    upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB" if channels == 3 else "L")
    shorter = min(upright.size)
    resized = upright.resize([side * each // shorter for each in upright.size], Image.Resampling.BILINEAR)
    left, top = (round((each - side) / 2) for each in resized.size)
    return np.asarray(resized.crop((left, top, left + side, top + side))).reshape(side, side, channels)


if __name__ == "__main__":
    main()
