"""Draws a folder of photos to try dmsflow on, where you have none at hand: three kinds of flowers, 100 × 75 pixels.

python examples/flowers.py flowers     # flowers/train and flowers/test, with a folder for each kind
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = (100, 75)
SCALE = 3  # drawn larger and shrunk, so that edges are smooth
KINDS = {"daisy": (13, 3.2), "poppy": (5, 1.1), "tulip": (3, 2.0)}  # petals, and their length to their width
HUES = [*range(60), *range(240, 360)]  # of 360 degrees: red, yellow and violet
COUNTS = {"train": 150, "test": 30}  # images of each kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the images")
    folder = parser.parse_args().folder
    for part, count in COUNTS.items():
        for kind in KINDS:
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                draw_flower(kind, random.Random(f"{part} {kind} {index}")).save(
                    folder / part / kind / f"{index:03d}.jpg", quality=90
                )
    print(f"{folder}: {sum(COUNTS.values()) * len(KINDS)} images of {', '.join(KINDS)}")


def draw_flower(kind: str, draw: random.Random) -> Image.Image:
    """A flower of random size, place, turn and colour before a blurred meadow."""
    petals, ratio = KINDS[kind]
    width, height = (side * SCALE for side in SIZE)
    image = _meadow(width, height, draw)
    reach = draw.uniform(0.28, 0.46) * height
    x, y = width * draw.uniform(0.35, 0.65), height * draw.uniform(0.4, 0.6)
    turn, hue = draw.uniform(0, math.tau), draw.choice(HUES)
    light, strength = draw.randint(55, 90), draw.randint(60, 100)
    canvas = ImageDraw.Draw(image)
    for petal in range(petals):
        angle = turn + math.tau * petal / petals
        colour = f"hsl({hue}, {strength}%, {light - petal % 2 * 8}%)"
        canvas.polygon(_petal(x, y, angle, reach, reach / ratio), fill=colour)
    middle = reach * 0.22
    canvas.ellipse((x - middle, y - middle, x + middle, y + middle), fill=f"hsl({draw.randint(20, 55)}, 70%, 35%)")
    return image.resize(SIZE, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.9)))


def _meadow(width: int, height: int, draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (width, height), f"hsl({draw.randint(70, 140)}, 45%, {draw.randint(18, 45)}%)")
    canvas = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, size = draw.uniform(0, width), draw.uniform(0, height), draw.uniform(8, 45)
        colour = f"hsl({draw.randint(40, 160)}, 40%, {draw.randint(10, 60)}%)"
        canvas.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(6))


def _petal(x: float, y: float, angle: float, length: float, width: float) -> list[tuple[float, float]]:
    """The outline of an ellipse from the flower's middle outwards."""
    points = []
    for step in range(24):
        along = length / 2 * (1 + math.cos(math.tau * step / 24))
        across = width / 2 * math.sin(math.tau * step / 24)
        points.append(
            (
                x + along * math.cos(angle) - across * math.sin(angle),
                y + along * math.sin(angle) + across * math.cos(angle),
            )
        )
    return points


if __name__ == "__main__":
    main()
