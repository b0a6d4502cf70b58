"""Image files, read as arrays for models."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import isqrt
from typing import Any
from zlib import crc32

import numpy as np

from xpconv._validation import check_choice, check_count
from xpconv.data._file_kind import file_kind, is_picture
from xpconv.data.rows import Rows
from xpconv.data.strokes import Strokes, frame_strokes
from xpconv.errors import ArgumentError, ArgumentTypeError, DatasetError, import_failure
from xpconv.nn.preprocessing import RESIZES
from xpconv.ops.numpy._workers import num_threads

__all__ = [
    "RESIZES",
    "ImageFiles",
    "check_image_shape",
    "read_image",
    "read_images",
    "read_strokes",
    "without_warnings",
]

MODES = {1: "L", 3: "RGB"}
BOX = 4  # PIL.Image.Resampling.BOX
MAX_PIXELS = 1 << 25  # decoded and converted, they take about 600 MB
# Pillow runs external programs to read some other formats.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
TIFF_SAMPLE_FORMAT = 339  # the tag; a 2 means signed integers
TOO_MANY_PIXELS = (
    f"it has too many pixels to be decoded safely: scale it down to {isqrt(MAX_PIXELS)}x{isqrt(MAX_PIXELS)} pixels "
    "or fewer first"
)


def read_image(path: str | os.PathLike[str], shape: Sequence[int], resize: str = "crop") -> np.ndarray:
    """Read an image file as pixels from 0 to 255, converted to a model's number of channels and size.

    Each pixel is the average of the area that it covers in the file. An image whose EXIF data gives an orientation is
    turned upright first. Transparent pixels are shown on white.

    Parameters
    ----------
    path : str or path
        A BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file with 8 bits per channel; of several frames the first is read.
        At most 2**25 pixels; a JPEG may have more, since it is decoded at a fraction of its size then.
    shape : (int, int, int)
        Channels (1 for grey, 3 for RGB), height and width.
    resize : {"crop", "squash", "strokes"}
        If the image has another aspect ratio: take the largest part around its centre that has this one, or scale
        height and width independently. Or take the strokes of a drawn character, light on dark, with
        `xpconv.data.strokes.frame_strokes`.

    Returns
    -------
    numpy.ndarray
        uint8 (C, H, W).

    Raises
    ------
    DatasetError
        If Pillow is not installed, or the file is missing, damaged, too large to be decompressed safely, or has more
        than 8 bits per channel.
    ArgumentError, ArgumentTypeError
        If `shape` is not the shape of an image, or `resize` is unknown.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "red.png")
    ...     Image.new("RGB", (40, 40), "red").save(path)
    ...     read_image(path, (3, 2, 2))[:, 0, 0]
    array([255,   0,   0], dtype=uint8)
    """
    shape = check_image_shape(shape)
    check_choice("resize", resize, RESIZES)
    with without_warnings():
        return _read(path, shape, resize)


def read_strokes(path: str | os.PathLike[str], height: int, width: int) -> Strokes:
    """Read an image file of a drawn or printed character as `xpconv.data.strokes.frame_strokes` does.

    Parameters
    ----------
    path : str or path
        As for `read_image`.
    height, width : int
        Size of the result in pixels.

    Raises
    ------
    DatasetError, ArgumentError, ArgumentTypeError
        As `read_image` and `frame_strokes`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image, ImageDraw
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, picture = Path(folder, "one.png"), Image.new("L", (60, 60), "white")
    ...     ImageDraw.Draw(picture).rectangle((28, 10, 32, 50), fill="black")
    ...     picture.save(path)
    ...     read_strokes(path, 4, 4).inverted
    True
    """
    height, width = check_count("height", height), check_count("width", width)
    with without_warnings():
        return frame_strokes(np.asarray(_open(path, "L", max(height, width))), height, width)


def read_images(
    paths: Sequence[str], shape: Sequence[int], resize: str, store: Callable[[int, np.ndarray | DatasetError], object]
) -> None:
    """Read image files by several threads, and call ``store(i, image)`` in this thread for each one, in order.

    Few images wait to be stored, so the memory does not grow with their number. No thread is left afterwards.

    Parameters
    ----------
    paths : sequence of str
    shape, resize
        As for `read_image`.
    store : callable
        For a file that cannot be read it gets the error in place of the image. If `store` raises an error, no more
        files are read.

    Examples
    --------
    >>> read_images(["no/such/file.png"], (3, 8, 8), "crop", print)
    0 cannot read the image no/such/file.png: No such file or directory
    """
    shape = check_image_shape(shape)
    check_choice("resize", resize, RESIZES)

    def read(path: str) -> np.ndarray | DatasetError:
        try:
            return _read(path, shape, resize)
        except DatasetError as error:
            return error

    threads = min(num_threads(), len(paths))
    if threads <= 1:
        for i, path in enumerate(paths):
            store(i, read(path))
        return
    waiting: deque[Future[np.ndarray | DatasetError]] = deque()
    with ThreadPoolExecutor(threads, "xpconv-images") as pool:
        try:
            for i, path in enumerate(paths):
                waiting.append(pool.submit(read, path))
                if len(waiting) == 4 * threads:
                    store(i + 1 - len(waiting), waiting.popleft().result())
            while waiting:
                store(len(paths) - len(waiting), waiting.popleft().result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class ImageFiles(Rows):
    """The images of files, decoded by several threads each time they are needed.

    Threads live only while images are decoded. A copy of an image whose file has changed is not returned: training
    again with the same seed would not give the same net.

    Parameters
    ----------
    paths : sequence of str
    shape, resize
        As for `read_image`.
    row_checksums : array (N,) of uint32
        The CRC-32 of each image, by which files that have changed are found.
    image_digests : sequence of bytes
        As `xpconv.data._fingerprint.image_digests` returns them.
    channel_sums : array (N, C, 2) of int64
        The sums of the pixels and of their squares for each channel of each image.

    Examples
    --------
    >>> ImageFiles(
    ...     [],
    ...     (3, 32, 32),
    ...     "crop",
    ...     np.zeros(0, np.uint32),
    ...     [],
    ...     np.zeros((0, 3, 2), np.int64),
    ... ).shape
    (0, 3, 32, 32)
    """

    def __init__(
        self,
        paths: Sequence[str],
        shape: Sequence[int],
        resize: str,
        row_checksums: np.ndarray,
        image_digests: Sequence[bytes],
        channel_sums: np.ndarray,
    ) -> None:
        super().__init__((len(paths), *shape), np.dtype(np.uint8))
        self.paths, self.resize = paths, resize
        self.row_checksums, self.image_digests, self.channel_sums = row_checksums, image_digests, channel_sums

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the images of some numbers; an error names the file."""
        paths, images = [self.paths[n] for n in numbers], np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def store(i: int, image: np.ndarray | DatasetError) -> None:
            if isinstance(image, DatasetError):
                raise image
            images[i] = image
            if crc32(images[i].data) != self.row_checksums[numbers[i]]:
                raise DatasetError(
                    f"the image {paths[i]} has changed while it was in use: start the command again to use the new one"
                )

        read_images(paths, self.shape[1:], self.resize, store)
        return images

    def select(self, numbers: np.ndarray) -> "ImageFiles":
        """Return the images of some numbers, without reading them."""
        return ImageFiles(
            [self.paths[n] for n in numbers],
            self.shape[1:],
            self.resize,
            self.row_checksums[numbers],
            [self.image_digests[n] for n in numbers],
            self.channel_sums[numbers],
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of unusual files, and refuse images with too many pixels.

    The filters of warnings belong to the whole process, so background threads must not use this.

    Examples
    --------
    >>> with without_warnings():
    ...     warnings.warn("corrupt EXIF data")
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # without Pillow, reading an image says what is missing
            from PIL import Image

            warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _read(path: str | os.PathLike[str], shape: tuple[int, int, int], resize: str) -> np.ndarray:
    """Read an image file as `read_image` does, in any thread."""
    channels, height, width = shape
    image = _open(path, "L" if resize == "strokes" else MODES[channels], max(height, width))
    if resize == "strokes":
        return np.tile(frame_strokes(np.asarray(image), height, width).pixels, (channels, 1, 1))
    box = _centre(image.size, width / height) if resize == "crop" else None
    pixels = np.asarray(image.resize((width, height), BOX, box=box))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _open(path: str | os.PathLike[str], mode: str, size: int) -> Any:
    """Return a picture of a file, upright, on white and in a mode of Pillow; a large JPEG at no less than `size`."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise ArgumentTypeError(f"path is {path!r}; expected the path of an image file")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise DatasetError(f"cannot read the image {os.fspath(path)}: it is not a file")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except Exception as error:  # an incompatible library may raise anything
        raise DatasetError(import_failure("reading images needs Pillow", error)) from error
    try:
        with Image.open(path, formats=FORMATS) as file:
            _check_8_bit(file)
            _limit_pixels(file, size)
            return _on_white(ImageOps.exif_transpose(file)).convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"cannot read the image {os.fspath(path)}: {TOO_MANY_PIXELS}") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"cannot read the image {os.fspath(path)}: {_why_unidentified(path)}") from error
    except OSError as error:
        raise DatasetError(f"cannot read the image {os.fspath(path)}: {error.strerror or error}") from error
    except Exception as error:  # a damaged image may raise anything
        raise DatasetError(f"cannot read the image {os.fspath(path)}: {error}") from error


def _why_unidentified(path: str | os.PathLike[str]) -> str:
    kind = file_kind(path)
    if is_picture(path):
        return f"it begins as {kind} does, but is damaged: replace or remove it"
    return f"{f'it is {kind}, and ' if kind else ''}its format is none of {', '.join(FORMATS)}: convert or remove it"


def _centre(size: tuple[int, int], aspect_ratio: float) -> tuple[float, float, float, float]:
    """Return the largest box (left, top, right, bottom) in the centre that has an aspect ratio, width over height."""
    width, height = size
    cut_width, cut_height = min(width, height * aspect_ratio), min(height, width / aspect_ratio)
    left, top = (width - cut_width) / 2, (height - cut_height) / 2
    return left, top, left + cut_width, top + cut_height


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Check the shape of a grey or an RGB image and return it as ints.

    Raises
    ------
    ArgumentError
        If `shape` is not (1, H, W) or (3, H, W), or height or width is less than 1.
    ArgumentTypeError
        If `shape` is not a sequence, or height or width is not an integer.

    Examples
    --------
    >>> check_image_shape((2, 8, 8))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: samples of shape (2, 8, 8) cannot be read from image files; expected (1, H, W) or ...
    """
    if not isinstance(shape, Sequence | np.ndarray):
        raise ArgumentTypeError(f"shape is {shape!r}; expected (1, H, W) or (3, H, W)")
    if len(shape) != 3 or shape[0] not in MODES:
        raise ArgumentError(
            f"samples of shape {tuple(shape)} cannot be read from image files; expected (1, H, W) or (3, H, W)"
        )
    return int(shape[0]), check_count("height", shape[1]), check_count("width", shape[2])


def _on_white(image: Any) -> Any:
    """Draw an image with transparent parts on white; return other images unchanged."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _limit_pixels(image: Any, size: int) -> None:
    """Let a large JPEG be decoded at a fraction of its size, at least `size`; refuse other large images."""
    if image.width * image.height > MAX_PIXELS:
        image.draft(None, (size, size))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(TOO_MANY_PIXELS)


def _check_8_bit(image: Any) -> None:
    """Raise ValueError if an image has more than 8 bits per channel: only its whole data set tells which range it uses.

    Pillow gives the upper half of 16-bit colours, so that low values would become black, and reads signed bytes of TIFF
    as unsigned ones.
    """
    if image.mode.startswith(("I", "F")) or any(
        ";16" in str(tile.args) or _is_ppm_of_16_bits(tile) for tile in image.tile
    ):
        raise ValueError(
            "its pixels have more than 8 bits per channel, and one image does not tell their range: scale all "
            "images of the data set by the same factor to levels from 0 to 255 and save them with 8 bits per channel"
        )
    if 2 in getattr(image, "tag_v2", {}).get(TIFF_SAMPLE_FORMAT, ()):
        raise ValueError("its pixels are signed integers: save all images of the data set with levels from 0 to 255")


def _is_ppm_of_16_bits(tile: Any) -> bool:
    return tile.codec_name.startswith("ppm") and tile.args[1] > 255  # the greatest level
