"""ImageNet, or any data set with its layout: train/ and val/ with a folder for each class, decoded while training.

Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015.
"""

from __future__ import annotations

from dmsflow.datasets import Dataset, data_folder, takes_no_argument
from dmsflow.datasets._folders import FileSplit, list_splits, streamed
from dmsflow.settings import Data

RESOLUTION = 224  # the usual one for ImageNet
SHORTER_SIDE = 256  # of a test image, before its centre of RESOLUTION is cut out
MEAN = (124, 116, 104)  # the usual 0.485, 0.456, 0.406 of 255, in whole pixels
STD = (58.4, 57.1, 57.4)  # the usual 0.229, 0.224, 0.225 of 255


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """Three channels, streamed. Training images are cropped and mirrored while they are decoded.

    Raises:
        DmsflowError: the folders are not there. They cannot be downloaded: image-net.org asks for
            an account.
    """
    takes_no_argument(data, argument)
    root = data_folder(data) if data.data_dir else data_folder(data) / "imagenet"
    resolution = data.resolution or RESOLUTION
    shorter_side = round(resolution * SHORTER_SIDE / RESOLUTION)
    train, test = (FileSplit(listing, resolution, shorter_side) for listing in list_splits(root, "val"))
    return streamed(data.name, train, test, MEAN, STD)
