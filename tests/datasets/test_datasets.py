from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from dmsflow import datasets, plugin
from dmsflow.datasets import ArraySplit, Dataset, Subset, _cifar, image_folder
from dmsflow.datasets import _folders as folders
from dmsflow.datasets._decoding import decode_centre, decode_random, open_image, random_box
from dmsflow.errors import DmsflowError
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.settings import Data

CLASSES = ("ant", "bee", "Cat")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DMSFLOW_DATA_DIR", raising=False)
    return tmp_path / "cache" / "dmsflow"


def noise(seed: int, width: int = 8, height: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    """Like a photograph: JPEG keeps it well."""
    return Image.fromarray(noise(0, 6, 6)).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(
    root: Path, each: tuple[int, int] = (4, 2), size: tuple[int, int] = (8, 8), held_out: str = "test"
) -> Path:
    """Image i of class c in part p is noise(100·p + 10·c + i), so every pixel is known."""
    for p, (part, count) in enumerate(zip(("train", held_out), each, strict=True)):
        for c, name in enumerate(sorted(CLASSES)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise(100 * p + 10 * c + i, *size)).save(root / part / name / f"{i}.png")
    return root


def load(name: object, **options: Any) -> Dataset:
    return datasets.load_dataset(Data(name=str(name), **options))


def refused(name: object, download: bool = False, **options: Any) -> str:
    with pytest.raises(DmsflowError) as caught:
        datasets.load_dataset(Data(name=str(name), **options), download)
    message = str(caught.value)
    assert "\n" not in message and "; " in message
    return message


# digits


def test_digits_are_the_bundled_ones() -> None:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    data = load("digits", resolution=8)
    pixels = np.concatenate([data.train.images(np.arange(1437)), data.test.images(np.arange(360))])
    images = np.rint(bundled.images * 255 / 16).astype(np.uint8)
    ours = sorted(zip(map(bytes, pixels), np.concatenate([data.train.labels, data.test.labels]).tolist(), strict=True))
    assert ours == sorted(zip(map(bytes, images), bundled.target.tolist(), strict=True))


def test_digits_shapes_and_split() -> None:
    data = load("digits")
    assert isinstance(data.train, ArraySplit) and isinstance(data.test, ArraySplit)
    assert data.train.pixels.shape == (1437, 32, 32, 1) and data.test.pixels.shape == (360, 32, 32, 1)
    assert data.train.pixels.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert data.train.pixels.min() == 0 and data.train.pixels.max() == 255
    assert data.classes == tuple("0123456789")
    assert (data.channels, data.resolution, data.crop_padding, data.flip) == (1, 32, 3, False)
    share = np.bincount(data.test.labels) / (np.bincount(data.test.labels) + np.bincount(data.train.labels))
    assert np.abs(share - 0.2).max() < 0.005  # stratified


def test_digits_never_change() -> None:
    data = load("digits")
    assert data.mean == (78,) and data.std == (82.6,)
    assert hashlib.sha256(data.test.labels.astype("<i8").tobytes()).hexdigest()[:16] == "89df99af78caf580"
    np.testing.assert_array_equal(data.train.images(np.arange(9)), load("digits").train.images(np.arange(9)))


def test_digits_need_no_heavy_import() -> None:
    code = "import sys; from dmsflow import datasets, settings; datasets.load_dataset(settings.Data()); print(sorted({'sklearn', 'torch', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_digits_resolution_scales_the_crop() -> None:
    data = load("digits", resolution=64)
    assert data.resolution == 64 and data.crop_padding == 6


# subsets


@pytest.mark.parametrize("count", [10, 200])
def test_train_images_are_the_first_of_each_class(count: int) -> None:
    whole, part = load("digits"), load("digits", train_images=count)
    assert np.bincount(part.train.labels).tolist() == [count // 10] * 10
    for label in range(10):
        first = np.flatnonzero(whole.train.labels == label)[: count // 10]
        ours = np.flatnonzero(part.train.labels == label)
        np.testing.assert_array_equal(part.train.images(ours), whole.train.images(first))
    assert len(part.test) == len(whole.test) and part.mean == whole.mean


def test_train_images_that_cannot_be_had() -> None:
    assert (
        refused("digits", train_images=204)
        == "data.train_images 204: is not a multiple of the 10 classes of digits; use 200"
    )
    assert refused("digits", train_images=3).endswith("use 10")
    assert refused("digits", train_images=0).endswith("use 10")
    most = 10 * int(np.bincount(load("digits").train.labels).min())
    assert refused("digits", train_images=9000).endswith(f"; use at most {most}")
    assert len(load("digits", train_images=most).train) == most


# arithmetic on pixels


@given(arrays(np.uint8, st.tuples(st.integers(1, 700), st.just(3), st.just(2), st.integers(1, 3))))
def test_statistics_equal_numpy_s(pixels: NDArray[np.uint8]) -> None:
    mean, std = datasets.statistics(pixels)
    exact_std = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64).std(0)
    assert np.abs(np.array(mean) - pixels.mean((0, 1, 2))).max() <= 0.5 + 1e-9
    np.testing.assert_allclose(std, np.maximum(exact_std, 1), rtol=0.006)


def test_statistics_do_not_overflow() -> None:
    pixels = np.full((1000, 2, 2, 1), 255, np.uint8)
    pixels[::2] = 0
    assert datasets.statistics(pixels) == ((128,), (128.0,))


@pytest.mark.parametrize(("before", "after"), [(8, 32), (32, 8), (10, 7), (5, 64)])
def test_resize_equals_pillow_s(before: int, after: int) -> None:
    pixels = np.stack([noise(seed, before, before) for seed in range(3)])
    theirs = [Image.fromarray(image).resize((after, after), Image.Resampling.BILINEAR) for image in pixels]
    difference = datasets.resize(pixels, after).astype(int) - np.stack([np.asarray(image) for image in theirs])
    assert np.abs(difference).max() <= 1  # Pillow rounds between its two passes


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40))
def test_resize_keeps_a_flat_image(value: int, before: int, after: int) -> None:
    flat = np.full((2, before, before, 1), value, np.uint8)
    assert (datasets.resize(flat, after) == value).all()


# image folders


def test_folder_pixels_labels_and_order(tmp_path: Path) -> None:
    data = load(f"image-folder:{write_folder(tmp_path / 'set')}")
    assert data.classes == ("Cat", "ant", "bee")  # as sorted() has them
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and data.train.labels.dtype == np.int64
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = np.stack([noise(10 * c + i) for c in range(3) for i in range(4)])
    np.testing.assert_array_equal(data.train.images(np.arange(12)), expected)
    np.testing.assert_array_equal(data.test.images(np.array([5, 0])), np.stack([noise(121), noise(100)]))
    assert (data.mean, data.std) == datasets.statistics(expected)
    assert (data.resolution, data.crop_padding, data.flip) == (8, 1, True)
    assert isinstance(data.train, ArraySplit) and isinstance(data.test, ArraySplit)


def test_folder_by_data_dir_and_val(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", held_out="val")
    assert len(load("image-folder", data_dir=str(root)).test) == 6
    assert (
        refused("image-folder") == "--dataset image-folder: does not say which folder; use --dataset image-folder:PATH"
    )


def test_folder_prefers_test_to_val(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    write_folder(root / "more", held_out="val")
    (root / "more" / "val").rename(root / "val")
    np.testing.assert_array_equal(load(f"image-folder:{root}").test.images(np.array([0])), noise(100)[None])


def test_folder_names_what_it_leaves_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    (root / "train" / "ant" / "notes.txt").write_text("x")
    (root / "train" / "ant" / "photo.heic").write_bytes(b"\0\0\0 ftypheic")
    (root / "train" / "ant" / ".hidden.png").write_text("x")
    (root / "train" / "ant" / "gone.png").symlink_to("nowhere")
    (root / "train" / "ant" / "loop").symlink_to(root, target_is_directory=True)
    (root / "train" / ".cache").mkdir()
    (root / "test" / "labels.csv").write_text("x")
    os.mkfifo(root / "test" / "bee" / "pipe.png")
    data = load(f"image-folder:{root}")
    names = [".cache", "ant/.hidden.png", "ant/gone.png", "ant/loop", "ant/notes.txt", "ant/photo.heic"]
    assert data.left_out == (*(f"train/{name}" for name in names), "test/labels.csv", "test/bee/pipe.png")
    assert load("imagenet", data_dir=str(_as_val(root))).left_out[-1] == "val/bee/pipe.png"
    assert len(data.train) == 12 and datasets.count_images(data)["left_out"] == 8
    assert datasets.describe_images(data)[-1].startswith(
        "left out, hidden or no image that Pillow can read: 8 (train/.c"
    )


def _as_val(root: Path) -> Path:
    (root / "test").rename(root / "val")
    return root


def test_folder_takes_every_file_that_pillow_can_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    deeper = root / "train" / "ant" / "2021-05" / "cut"
    deeper.mkdir(parents=True)
    formats = {"jfif": "JPEG", "jpe": "JPEG", "tga": "TGA", "pcx": "PCX", "jp2": "JPEG2000", "": "PNG", "JPG": "JPEG"}
    for suffix, form in formats.items():
        Image.fromarray(noise(5)).save(deeper / f"x.{suffix}", form)
    data = load(f"image-folder:{root}")
    assert data.left_out == () and np.bincount(data.train.labels).tolist() == [4, 4 + len(formats), 4]
    listing = folders.list_images(root / "train")
    ours = [name.decode() for name in listing.files.tolist() if name.startswith(b"ant/")]
    assert ours == sorted(ours) and "ant/2021-05/cut/x.jfif" in ours


def test_images_one_folder_deeper_are_taken(tmp_path: Path) -> None:
    """Of class Cat, 6 images lie in its folder and 20 one folder deeper."""
    root = write_folder(tmp_path / "set", each=(6, 2))
    (root / "train" / "Cat" / "2021-05").mkdir()
    for number in range(20):
        Image.fromarray(noise(number)).save(root / "train" / "Cat" / "2021-05" / f"{number}.png")
    data = load(f"image-folder:{root}")
    assert np.bincount(data.train.labels).tolist() == [26, 6, 6] and data.left_out == ()
    np.testing.assert_array_equal(data.train.images(np.array([3]))[0], noise(0))  # between 2.png and 3.png


def test_a_damaged_tiff_is_one_line_without_warnings(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    Image.fromarray(noise(0)).save(path)
    content = path.read_bytes()
    tag = next(head for kind in (3, 4) if (head := struct.pack("<HHI", 273, kind, 1)) in content)
    path.write_bytes(content.replace(tag, tag[:4] + struct.pack("<I", 1 << 20)))  # more offsets than the file has bytes
    with pytest.raises(DmsflowError, match="cannot be read as an image"), open_image(path) as image:
        image.load()


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    path = tmp_path / "x.png"
    Image.fromarray(noise(0)).save(path, "EPS")
    with pytest.raises(DmsflowError, match="cannot be read as an image .cannot identify"), open_image(path) as image:
        image.load()


def test_counts_are_in_words_and_in_the_manifest(tmp_path: Path) -> None:
    data = load(f"image-folder:{write_folder(tmp_path / 'set', each=(21, 2))}")
    counts = {"train": 63, "test": 6, "classes": 3, "smallest_class": "Cat", "smallest_class_images": 21, "left_out": 0}
    assert datasets.count_images(data) == counts
    words = "63 training and 6 test images in 3 classes; the smallest, Cat, has 21 for training"
    assert datasets.describe_images(data) == [words]
    (tmp_path / "set" / "train" / "bee" / "0.png").rename(tmp_path / "set" / "train" / "ant" / "x.png")
    (tmp_path / "set" / "train" / "bee" / "1.png").unlink()
    few = datasets.describe_images(load(f"image-folder:{tmp_path / 'set'}"))[1]
    assert few == "fewer than 20 training images: bee (19); more would help"


@pytest.mark.parametrize("name", ["\x1b[31mred", "[b]", "<script>", "caf\udcff", "a'b \"c"])
def test_a_class_folder_of_any_name(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "set")
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / name)
    data = load(f"image-folder:{root}")
    assert sorted(data.classes) == sorted(["Cat", name, "bee"]) and len(data.train) == 12
    msgspec.json.encode(datasets.count_images(data))
    (root / "test" / name / "0.png").write_bytes(b"")
    assert refused(f"image-folder:{root}").isprintable()


def test_a_tiff_whose_strips_lie_at_fractions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.new("RGB", (9, 8)).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HH", 273, 4))  # StripOffsets, whose type becomes RATIONAL
    content[entry + 2] = 5
    path.write_bytes(content)
    with pytest.raises(DmsflowError, match="cannot be read as an image"), open_image(path) as image:
        image.load()


def test_an_image_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "set") / "train" / "ant" / "0.png"

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    found = refused(f"image-folder:{tmp_path / 'set'}")
    assert "0.png: cannot be read as an image (" in found and "Permission denied" in found
    assert path.exists()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "set")
    scan = os.scandir

    def forbidden(path: Path) -> Any:
        if Path(path).name == "ant":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", forbidden)
    assert refused(f"image-folder:{root}").startswith(f"{root / 'train' / 'ant'}: Permission denied; give a folder")


# the orientation of photographs


def _oriented(orientation: int, form: str, size: tuple[int, int] = (8, 8)) -> tuple[bytes, NDArray[np.uint8]]:
    """A file as a camera writes it that was held askew, and the image that people see."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored, written = smooth(*size), io.BytesIO()
    stored.save(written, form, exif=exif, **({"quality": 95} if form == "JPEG" else {"lossless": True}))
    turns = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}  # and mirrored
    pixels = np.rot90(
        np.asarray(Image.open(written).convert("RGB") if form == "JPEG" else stored), turns[orientation][0]
    )
    return written.getvalue(), pixels[:, ::-1] if turns[orientation][1] else pixels


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, form: str) -> None:
    """In a data set, and of a folder of images that a model file is measured on."""
    root = write_folder(tmp_path / "set", each=(1, 1), size=(8, 8))
    content, expected = _oriented(orientation, form)
    (root / "train" / "Cat" / "0.png").write_bytes(content)
    bare = folders.FileSplit(folders.list_images(root / "train"), 8, 8)
    for split in (load(f"image-folder:{root}").train, bare):
        difference = np.abs(split.images(np.array([0]))[0].astype(int) - expected)
        assert difference.mean() == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_random_crops_are_of_the_upright_image(tmp_path: Path, orientation: int, form: str) -> None:
    """The same seed crops the same part, whichever way the file is stored; a large JPEG is decoded reduced."""
    content, expected = _oriented(orientation, form, (400, 300))
    (tmp_path / "x.png").write_bytes(content)
    Image.fromarray(expected).save(tmp_path / "upright.png")
    for seed in range(4):
        crops = [decode_random(tmp_path / name, 16, np.random.default_rng(seed)) for name in ("x.png", "upright.png")]
        assert np.abs(crops[0].astype(int) - crops[1]).mean() < (6 if form == "JPEG" else 0.01)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=80), st.booleans())
@settings(max_examples=60, deadline=None)
def test_damaged_exif_data_leave_the_image_as_it_is(content: bytes, marked: bool) -> None:
    """60 random and half-right blocks of EXIF data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jpg"
        Image.fromarray(noise(0)).save(path, exif=b"Exif\0\0" + b"II*\0\x08\0\0\0" * marked + content)
        assert decode_centre(path, 8, None).shape == (8, 8, 3)


def test_folder_train_images(tmp_path: Path) -> None:
    data = load(f"image-folder:{write_folder(tmp_path / 'set')}", train_images=6)
    np.testing.assert_array_equal(data.train.images(np.arange(6)), np.stack([noise(s) for s in (0, 1, 10, 11, 20, 21)]))


@pytest.mark.parametrize(("width", "height"), [(20, 12), (12, 20), (13, 13), (12, 31)])
def test_folder_resolution_is_resize_and_centre_crop(tmp_path: Path, width: int, height: int) -> None:
    data = load(f"image-folder:{write_folder(tmp_path / 'set', size=(width, height))}", resolution=6)
    transforms = _torchvision().transforms
    theirs = transforms.Compose([transforms.Resize(6), transforms.CenterCrop(6)])(
        Image.fromarray(noise(1, width, height))
    )
    np.testing.assert_array_equal(data.train.images(np.array([1]))[0], np.asarray(theirs))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_folder_converts_other_modes(tmp_path: Path, mode: str) -> None:
    root = write_folder(tmp_path / "set")
    image = Image.fromarray(noise(7)).convert(mode)
    path = root / "train" / "ant" / ("0.tif" if mode == "CMYK" else "0.png")
    (root / "train" / "ant" / "0.png").unlink()
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
        expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_array_equal(load(f"image-folder:{root}").train.images(np.array([4]))[0], expected)


def test_folder_palette_with_transparency(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    image = Image.fromarray(noise(7)).quantize(16)
    image.save(root / "train" / "ant" / "0.png", transparency=bytes(range(0, 160, 10)))
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load(f"image-folder:{root}").train.images(np.array([4]))[0], expected)


def test_folder_refuses_sixteen_bits(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    path = root / "train" / "ant" / "0.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)
    assert refused(f"image-folder:{root}") == f"{path}: has pixels of mode I;16; convert it to 8 bits a channel"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "ppm", "tif", "webp"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_folder_names_the_damaged_file(tmp_path: Path, suffix: str, damage: str) -> None:
    root = write_folder(tmp_path / "set")
    path = root / "test" / "bee" / f"9.{suffix}"
    Image.fromarray(noise(3)).save(path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image\n", "cut": content[: len(content) // 2]}[damage])
    message = refused(f"image-folder:{root}")
    assert message.startswith(f"{path}: cannot be read as an image (") and message.endswith("; replace it or remove it")


def test_folder_file_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", each=(1, 1))
    path = root / "train" / "Cat" / "0.png"
    content = path.read_bytes()
    split = folders.FileSplit(
        folders.Listing(root / "train", ("Cat",), np.array([b"Cat/0.png"]), np.array([0])), 8, None
    )
    refusals = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(split.images(np.array([0]))[0], noise(0))
        except DmsflowError:
            refusals += 1
    assert refusals > 0.9 * len(content)  # the last bytes are checksums and the end mark


def test_folder_sizes_without_resolution(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    odd = root / "test" / "bee" / "1.png"
    Image.fromarray(noise(0, 9, 8)).save(odd)
    assert (
        refused(f"image-folder:{root}")
        == f"{odd}: is 9x8, but others are 8x8; use --resolution N to resize all images to N pixels"
    )
    assert load(f"image-folder:{root}", resolution=8).resolution == 8
    first = root / "train" / "Cat" / "0.png"
    Image.fromarray(noise(0, 9, 8)).save(first)
    assert (
        refused(f"image-folder:{root}")
        == f"{first}: is 9x8, not square; use --resolution N to resize all images to N pixels"
    )


def test_folder_layout_errors(tmp_path: Path) -> None:
    root = tmp_path / "set"
    name = f"image-folder:{root}"
    assert refused(name).startswith(f"{root}: no such folder; it needs train/ and test/ or val/")
    root.mkdir()
    assert refused(name).startswith(f"{root}: has no test/ or val/; it needs train/")
    (root / "test").mkdir()
    assert refused(name).startswith(f"{root}: has no train/; it needs train/")
    (root / "train").mkdir()
    assert refused(name).startswith(f"{root / 'train'}: has 0 class folders; make one folder")
    (root / "train" / "ant").mkdir()
    assert refused(name).startswith(f"{root / 'train'}: has 1 class folders; make one folder")
    (root / "train" / "bee").mkdir()
    assert refused(name).startswith(
        f"{root / 'train'}: no images in ant and bee; put images into each class folder, or remove it"
    )
    (root / "train" / "bee" / "1.heic").write_bytes(b"unknown")
    assert "no images in ant and bee (1 files cannot be read as images: bee/1.heic); put" in refused(name)


def test_folder_classes_must_agree(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    (root / "test" / "bee").rename(tmp_path / "bee")
    assert (
        refused(f"image-folder:{root}") == f"{root / 'test'}: has no class bee; train/ and test/ need the same classes"
    )
    (tmp_path / "bee").rename(root / "test" / "bee")
    (root / "train" / "ant").rename(tmp_path / "ant")
    assert (
        refused(f"image-folder:{root}") == f"{root / 'train'}: has no class ant; train/ and test/ need the same classes"
    )


def test_folder_too_large_for_memory(tmp_path: Path) -> None:
    message = refused(f"image-folder:{write_folder(tmp_path / 'set')}", resolution=1_000_000)
    assert "more than half of this machine's memory" in message and "--dataset imagenet" in message


def test_resizing_beyond_memory_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    assert "images of 1000000000 pixels a side: the pixels would take" in refused("digits", resolution=10**9)


# the cache of image folders


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each time that images are decoded, not read from the cache."""
    times: list[int] = []
    decode = image_folder._decode

    def counted(*splits: folders.FileSplit) -> image_folder.Pixels:
        times.append(len(splits))
        return decode(*splits)

    monkeypatch.setattr(image_folder, "_decode", counted)
    return times


def test_cache_gives_the_same_pixels(tmp_path: Path, own_cache: Path, decoded: list[int]) -> None:
    name = f"image-folder:{write_folder(tmp_path / 'set')}"
    first, second = load(name), load(name)
    assert len(decoded) == 1
    assert len(list((own_cache / "images").iterdir())) == 1
    for one, other in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(one.images(np.arange(len(one))), other.images(np.arange(len(other))))
        np.testing.assert_array_equal(one.labels, other.labels)


def change_pixels(root: Path) -> None:
    Image.fromarray(noise(99)).save(root / "train" / "ant" / "0.png")


def change_time(root: Path) -> None:
    path = root / "test" / "ant" / "0.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def remove_one(root: Path) -> None:
    (root / "train" / "ant" / "0.png").unlink()


def rename_one(root: Path) -> None:
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "7.png")


def move_one(root: Path) -> None:
    (root / "train" / "ant" / "0.png").rename(root / "train" / "bee" / "00.png")


@pytest.mark.parametrize("change", [change_pixels, change_time, remove_one, rename_one, move_one])
def test_cache_notices_a_change(tmp_path: Path, own_cache: Path, decoded: list[int], change: Any) -> None:
    root = write_folder(tmp_path / "set")
    load(f"image-folder:{root}")
    change(root)
    again = load(f"image-folder:{root}")
    assert len(decoded) == 2
    assert len(list((own_cache / "images").iterdir())) == 1  # the old one is replaced
    fresh = folders.list_images(root / "train")
    expected = folders.FileSplit(fresh, 8, None).images(np.arange(len(fresh.labels)))
    np.testing.assert_array_equal(again.train.images(np.arange(len(again.train))), expected)


def test_cache_tells_resolutions_and_folders_apart(tmp_path: Path, decoded: list[int]) -> None:
    one, other = write_folder(tmp_path / "a" / "set"), write_folder(tmp_path / "b" / "set", size=(10, 10))
    assert [load(f"image-folder:{one}", resolution=r).resolution for r in (None, 8, 6)] == [8, 8, 6]
    assert load(f"image-folder:{other}").resolution == 10
    assert load(f"image-folder:{one}", resolution=6).resolution == 6
    assert len(decoded) == 4


def test_cache_made_with_a_resolution_does_not_hide_odd_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    Image.fromarray(noise(0, 9, 8)).save(root / "train" / "bee" / "1.png")
    load(f"image-folder:{root}", resolution=8)
    assert "is 9x8" in refused(f"image-folder:{root}")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_cache_that_is_damaged_is_made_again(tmp_path: Path, own_cache: Path, decoded: list[int], damage: str) -> None:
    name = f"image-folder:{write_folder(tmp_path / 'set')}"
    expected = load(name).train.images(np.arange(12))
    (path,) = (own_cache / "images").iterdir()
    content = bytearray(path.read_bytes())
    at = content.index(expected[:1].tobytes()[:64])
    content[at] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:at]), "empty": b"", "text": b"x" * 100}[damage])
    np.testing.assert_array_equal(load(name).train.images(np.arange(12)), expected)
    assert len(decoded) == 2
    load(name)
    assert len(decoded) == 2  # and it was written whole


def test_cache_is_not_left_half_written(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        load(f"image-folder:{write_folder(tmp_path / 'set')}")
    assert not list((own_cache / "images").iterdir())


# streamed sets


def test_imagenet_is_streamed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", size=(40, 30), held_out="val")
    data = load("imagenet", data_dir=str(root), resolution=16)
    assert isinstance(data.train, folders.FileSplit) and isinstance(data.test, folders.FileSplit)
    assert (data.resolution, data.crop_padding, data.flip, data.mean) == (16, 0, False, (124, 116, 104))
    images = data.train.images(np.array([3, 1, 3]))
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], images[2])
    assert load("imagenet", data_dir=str(root)).resolution == 224


def test_imagenet_test_images_are_torchvision_s(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", size=(301, 270), held_out="val", each=(1, 1))
    path = root / "val" / "ant" / "0.png"
    path.unlink()
    smooth(301, 270).save(path.with_suffix(".jpg"))
    transforms = _torchvision().transforms
    with Image.open(path.with_suffix(".jpg")) as image:
        theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    ours = load("imagenet", data_dir=str(root)).test.images(np.array([1]))[0]
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_streamed_equals_eager(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", size=(16, 16))
    eager = load(f"image-folder:{root}", resolution=8)
    found = folders.list_images(root / "train")
    streamed = folders.FileSplit(found, 8, shorter_side=8)
    np.testing.assert_array_equal(eager.train.images(np.arange(12)), streamed.images(np.arange(12)))


def test_augmentation_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", size=(40, 30), held_out="val")
    train = load("imagenet", data_dir=str(root), resolution=16).train
    together = train.images(np.arange(12), augment_seed=5)
    for index in (11, 0, 4):
        np.testing.assert_array_equal(train.images(np.array([index]), augment_seed=5)[0], together[index])
    assert (train.images(np.arange(12), augment_seed=6) != together).any((1, 2, 3)).all()
    assert (train.images(np.arange(12)) != together).any((1, 2, 3)).all()


def test_augmentation_is_a_mirrored_crop_of_the_image(tmp_path: Path) -> None:
    """On an image whose red and green are its coordinates, a crop keeps rows and columns linear."""
    ramp = np.zeros((120, 160, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(160), np.arange(120)[:, None]
    root = write_folder(tmp_path / "set", each=(1, 1), held_out="val")
    Image.fromarray(ramp).save(root / "train" / "ant" / "0.png")
    train = load("imagenet", data_dir=str(root), resolution=16).train
    crops = np.concatenate([train.images(np.array([1]), augment_seed=seed) for seed in range(60)]).astype(int)
    across, down = crops[:, 8, -1, 0] - crops[:, 8, 0, 0], crops[:, -1, 8, 1] - crops[:, 0, 8, 1]
    assert 15 < (across < 0).sum() < 45 and (down > 0).all()  # mirrored left to right only
    area = np.abs(across) * down * (16 / 15) ** 2 / (160 * 120)
    assert area.min() > 0.05 and area.max() < 1.1 and np.ptp(area) > 0.5
    assert (np.abs(np.diff(crops[..., 1], axis=2)) <= 1).all()  # green does not change along a row


def test_augmentation_decodes_large_jpegs_reduced(tmp_path: Path) -> None:
    """The short cut through JPEG's reduced decoding gives the crop of the full image, nearly."""
    root = write_folder(tmp_path / "set", each=(1, 1), held_out="val")
    path = root / "train" / "ant" / "0.png"
    train = load("imagenet", data_dir=str(root), resolution=32).train

    def crops() -> NDArray[np.int64]:
        return np.concatenate([train.images(np.array([1]), augment_seed=seed) for seed in range(10)]).astype(int)

    smooth(640, 480).save(path)
    expected = crops()
    smooth(640, 480).save(path, format="jpeg", quality=98, subsampling=0)
    assert 0 < np.abs(crops() - expected).mean() < 2


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2**32))
def test_random_box_lies_inside(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_streamed_subset(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", size=(20, 20), held_out="val")
    whole = load("imagenet", data_dir=str(root), resolution=16).train
    part = load("imagenet", data_dir=str(root), resolution=16, train_images=6).train
    assert isinstance(part, Subset) and len(part) == 6
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    chosen = np.array([0, 1, 4, 5, 8, 9])
    np.testing.assert_array_equal(part.images(np.arange(6)), whole.images(chosen))
    np.testing.assert_array_equal(
        part.images(np.array([2]), augment_seed=1), whole.images(np.array([4]), augment_seed=1)
    )


def test_streamed_split_goes_to_worker_processes(tmp_path: Path) -> None:
    train = load(
        "imagenet", data_dir=str(write_folder(tmp_path / "set", held_out="val")), resolution=8, train_images=3
    ).train
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy.images(np.arange(3), 1), train.images(np.arange(3), 1))


def test_imagenet_errors(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("imagenet").startswith(f"{own_cache / 'imagenet'}: no such folder; it needs train/ and val/, each")
    monkeypatch.setenv("DMSFLOW_DATA_DIR", str(tmp_path / "elsewhere"))
    assert refused("imagenet").startswith(f"{tmp_path / 'elsewhere' / 'imagenet'}: no such folder")
    root = write_folder(tmp_path / "set")
    assert refused("imagenet", data_dir=str(root)).startswith(f"{root}: has no val/; it needs")
    (root / "test").rename(root / "val")
    path = root / "train" / "Cat" / "0.png"
    path.write_bytes(b"no image")
    assert refused("imagenet", data_dir=str(root)).startswith(f"{path}: cannot be read as an image (")


# CIFAR


def _torchvision() -> Any:
    from dmsflow.datasets._torchvision import import_torchvision

    return import_torchvision()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, pickled: bool) -> NDArray[np.uint8]:
    """A tiny set in an official layout: planes of red, green and blue, the MD5 of its files known to the reader.

    Returns its images [60, 3, 32, 32]: 10 in each of five training batches and 10 test images (cifar100: one of 50).
    """
    module = load_plugin("datasets", name)
    files, pixels = module.FILES, np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    parts = np.split(np.arange(60), range(10, 60, 10) if name == "cifar10" else [50])
    folder, md5 = root / files.folder, {}

    def write(file: str, content: dict[str, Any]) -> None:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        md5[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()

    if pickled:
        folder.mkdir(parents=True)
        *batches, names = files.pickles
        for file, rows in zip(batches, parts, strict=True):
            labels = {files.keys[0]: [int(i) % 10 for i in rows], "coarse_labels": [7] * len(rows)}
            content = {"batch_label": "x", **labels, "data": pixels[rows].reshape(len(rows), -1)}
            write(file, content | {"filenames": [f"{i}.png" for i in rows]})
        write(names, {"num_vis": 3072, files.keys[1]: [f"class{i}" for i in range(10)], "coarse_label_names": ["x"]})
        monkeypatch.setattr(module, "FILES", dataclasses.replace(files, pickles=md5))
        return pixels
    written = {files.names: "".join(f"class{i}\n" for i in range(10)).encode() + b"\n"}
    for file, rows in zip([*files.pickles][:-1], parts, strict=True):
        front = [b"\x07"] * (files.label_bytes - 1)
        written[f"{file}.bin"] = b"".join(b"".join([*front, bytes([i % 10]), pixels[i].tobytes()]) for i in rows)
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / files.archive, "w:gz") as archive:
        for file, content in reversed(written.items()):
            member = tarfile.TarInfo(f"some-folder/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.md5((root / files.archive).read_bytes()).hexdigest()
    monkeypatch.setattr(module, "FILES", dataclasses.replace(files, md5=digest))
    return pixels


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_reads_both_official_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pickled: bool
) -> None:
    pixels = write_cifar(tmp_path, monkeypatch, name, pickled=pickled).transpose(0, 2, 3, 1)
    data = load(name, data_dir=str(tmp_path))
    assert isinstance(data.train, ArraySplit) and data.train.pixels.flags.c_contiguous
    np.testing.assert_array_equal(data.train.pixels, pixels[:50])
    np.testing.assert_array_equal(data.test.images(np.arange(10)), pixels[50:])
    assert data.train.labels.tolist() == [*range(10)] * 5 and data.train.labels.dtype == np.int64
    assert data.classes == tuple(f"class{number}" for number in range(10))
    assert (data.resolution, data.crop_padding, data.flip) == (32, 4, True)
    assert (data.mean, data.std) == datasets.statistics(pixels[:50])


class Hostile:
    """What unpickling would call."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["DMSFLOW_TEST_MARK"],)


def test_cifar_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a file whose MD5 is right does not run what it names."""
    monkeypatch.setenv("DMSFLOW_TEST_MARK", str(tmp_path / "mark"))
    dumps = pickle.dumps
    monkeypatch.setattr(pickle, "dumps", lambda content, protocol: dumps({"x": Hostile(), **content}, protocol))
    write_cifar(tmp_path, monkeypatch, "cifar10", pickled=True)
    assert len(load("cifar10", data_dir=str(tmp_path)).train) == 50
    assert not (tmp_path / "mark").exists()
    pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert (tmp_path / "mark").exists()  # so the file is hostile indeed


def test_cifar_resolution_and_data_dir_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10", pickled=False)
    monkeypatch.setenv("DMSFLOW_DATA_DIR", str(tmp_path))
    data = load("cifar10", resolution=48, train_images=20)
    assert data.train.images(np.arange(20)).shape == (20, 48, 48, 3)
    assert data.test.images(np.arange(10)).shape == (10, 48, 48, 3) and data.crop_padding == 6


def test_cifar_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    right = "use search --download, or name its folder with --data-dir"
    assert refused("cifar10") == f"{own_cache / 'cifar-10-binary.tar.gz'}: cifar10 is missing; {right}"
    assert not own_cache.exists()
    write_cifar(tmp_path, monkeypatch, "cifar10", pickled=True)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    content = batch.read_bytes()
    batch.write_bytes(content + b"x")
    damaged = f": cifar10 is damaged or incomplete; remove it, and {right}"
    assert refused("cifar10", data_dir=str(tmp_path)) == f"{batch}{damaged}"
    batch.unlink()
    assert refused("cifar10", data_dir=str(tmp_path)) == f"{batch}: cifar10 is missing; {right}"
    write_cifar(tmp_path, monkeypatch, "cifar10", pickled=False)  # the archive is read where both are there
    assert len(load("cifar10", data_dir=str(tmp_path)).train) == 50
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert refused("cifar10", data_dir=str(tmp_path)) == f"{archive}{damaged}"


def test_cifar_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar(tmp_path / "site", monkeypatch, "cifar10", pickled=False)
    monkeypatch.setattr(_cifar, "URL", (tmp_path / "site").as_uri() + "/")
    data = datasets.load_dataset(Data(name="cifar10", data_dir=str(tmp_path / "here")), download=True)
    assert len(data.train) == 50 and [path.name for path in (tmp_path / "here").iterdir()] == ["cifar-10-binary.tar.gz"]
    assert capsys.readouterr().out == ""  # stdout is for the manifest's path
    monkeypatch.setattr(_cifar, "URL", "file:///nowhere/")
    assert len(datasets.load_dataset(Data(name="cifar10", data_dir=str(tmp_path / "here")), download=True).train) == 50


def test_cifar_download_fails_or_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "site", monkeypatch, "cifar10", pickled=False)
    archive, here = tmp_path / "site" / "cifar-10-binary.tar.gz", tmp_path / "here"
    archive.write_bytes(archive.read_bytes()[:-7])
    monkeypatch.setattr(_cifar, "URL", archive.parent.as_uri() + "/")
    start, end = f"{here / archive.name}: cannot be downloaded (", "check the connection, or put cifar-10-binary.tar.gz"
    cut_off = refused("cifar10", download=True, data_dir=str(here))
    assert cut_off.startswith(f"{start}it was cut off or changed); {end}") and not list(here.iterdir())
    archive.unlink()
    missing = refused("cifar10", download=True, data_dir=str(here))
    assert missing.startswith(start) and "No such file" in missing and end in missing and not list(here.iterdir())


FAKE_TORCHVISION = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: None)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: None)
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FAKE_TORCHVISION, "imported"),
        ("raise ImportError('libcudart.so.99')", "torchvision: cannot be imported (libcudart.so.99); pip install"),
        ("raise RuntimeError('something else')", "torchvision: cannot be imported (something else); pip install"),
        (
            "raise RuntimeError('operator torchvision::roi_align does not exist')",
            "torchvision: cannot be imported (operator",
        ),
    ],
)
def test_torchvision_imports_without_its_operators(tmp_path: Path, content: str, expected: str) -> None:
    """A torchvision whose compiled operators did not load, as the one for CUDA beside a CPU-only torch."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(content)
    code = (
        "from dmsflow.datasets._torchvision import import_torchvision\n"
        "from dmsflow.errors import DmsflowError\n"
        "try: import_torchvision(); print('imported')\n"
        "except DmsflowError as error: print(error)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(plugin.PACKAGE.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.startswith(expected)


# dispatch and a user's own data set

OWN = """
import numpy as np
from dmsflow.datasets import ArraySplit, Dataset

def load(argument, data, download):
    pixels = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
    labels = np.array([0, 1, 0, 1])
    split = ArraySplit(pixels, labels)
    return Dataset(argument or "mine", ("no", "yes"), split, split, (100,), (50.0,), crop_padding=2)
"""


def test_own_data_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    data = load(path, resolution=4, train_images=2)
    assert data.name == "mine" and data.train.images(np.array([0])).shape == (1, 4, 4, 1) and data.crop_padding == 1
    assert len(data.train) == 2 and len(data.test) == 4
    assert load(f"{path}:other").name == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def load", "def lode", "has no load(); define load(argument, data, download) -> Dataset"),
        ("return Dataset", "return str(Dataset", "load() returned a str; return a dmsflow.datasets.Dataset"),
        ("(100,)", "(100.5,)", "it needs an integer mean"),
        ("(50.0,)", "(0.0,)", "and a positive std"),
        ("(50.0,)", "(50.0, 50.0)", "for each channel"),
        (
            "np.array([0, 1, 0, 1])",
            "np.array([0, 1, 0, 2])",
            "train has labels from 0 to 2, but the classes go from 0 to 1",
        ),
        ("np.array([0, 1, 0, 1])", "np.array([0.0, 1, 0, 1])", "train has labels float64 [4], but integers [N] are"),
        ("np.array([0, 1, 0, 1])", "[0, 1, 0, 1]", "AttributeError: 'list' object has no attribute 'dtype'"),
        ("(100,)", "(3000,)", "it needs an integer mean from 0 to 255"),
        ("(100,)", "None", "TypeError: object of type 'NoneType' has no len()"),
        ("(50.0,)", "(float('inf'),)", "and a positive std"),
        ('("no", "yes")', "2", "TypeError: 'int' object is not iterable"),
        ("split, split", "split, None", "'NoneType'"),
        ("split, split", "split, ArraySplit(pixels[:, :4, :4], labels)", "its images have 4 and 8 pixels a side"),
        ("crop_padding=2", "crop_padding=-1", "a crop_padding of whole pixels"),
        (
            "    pixels = np",
            "    raise KeyError(argument)\n    pixels = np",
            "KeyError in load(): None; correct the file",
        ),
        ("    pixels = np", "    raise SystemExit(3)\n    pixels = np", "SystemExit in load(): 3; correct the file"),
        ("np.array([0, 1, 0, 1])", "np.array([0, 1, 0])", "train has 4 images and 3 labels"),
        ("dtype=np.uint8", "dtype=float", "train has float64 images [4, 8, 8, 1], but uint8 [N, H, H, 1] is needed"),
        ("reshape(4, 8, 8, 1)", "reshape(4, 4, 16, 1)", "train has uint8 images [4, 4, 16, 1]"),
        ("(100,), (50.0,)", "(1, 2, 3), (1.0, 1.0, 1.0)", "but uint8 [N, H, H, 3] is needed"),
    ],
)
def test_own_data_set_has_to_keep_the_contract(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.py"
    assert old in OWN
    path.write_text(OWN.replace(old, new) + ")" * (new.count("str(")))
    assert message in refused(path)


def test_own_streamed_set_must_honour_the_resolution(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        OWN.replace(
            "split = ArraySplit(pixels, labels)",
            "from dmsflow.datasets import Subset; split = Subset(ArraySplit(pixels, labels), np.arange(4))",
        )
    )
    assert load(path).resolution == 8
    assert refused(path, resolution=4).startswith("data set mine: its images have 8 pixels, not the 4 asked for")


def test_unknown_and_arguments(tmp_path: Path) -> None:
    assert refused(str(tmp_path)) == f"dataset {tmp_path}: is a folder; use image-folder:{tmp_path}"
    assert "use one of arrays, cifar10, cifar100, digits, image-folder, imagenet" in refused("mnist")
    assert refused("digits:7") == "--dataset digits:7: digits takes nothing after a colon; use --dataset digits"
    assert refused("cifar10:7").endswith("use --dataset cifar10")
    assert refused("imagenet:7").endswith("use --dataset imagenet")


def test_listed_are_the_data_sets_only() -> None:
    assert list_plugins("datasets") == ["arrays", "cifar10", "cifar100", "digits", "image-folder", "imagenet"]
    assert all(hasattr(load_plugin("datasets", name), "load") for name in list_plugins("datasets"))
