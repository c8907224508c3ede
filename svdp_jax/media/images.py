"""Pictures in and out, safe with any input file. Images are (h, w, 3) uint8 RGB throughout."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.files import write_whole

MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 1 << 30  # more than that many pixels take as an uncompressed file
SMALLEST_SHOWN = 256  # pixels
ORIENTATION = 0x0112  # EXIF's tag
# What is to be done with a picture for EXIF's number of its orientation.
TURNS = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"}
PNG_HEAD = 33  # bytes: signature and IHDR, after which text may stand


def read_image(path) -> np.ndarray:
    """The picture at `path` as (h, w, 3) uint8 RGB, turned upright; transparent parts become white.

    PNG, JPEG, WebP, BMP, TIFF or GIF; its size is read from the header and checked before decoding.
    """
    check_regular_file(path)
    if os.path.getsize(path) > MAX_IMAGE_BYTES:
        raise UserError(f"{path}: is larger than a picture may be; save it again as PNG or JPEG.")
    check_pixels(path, *_image_size(path), MAX_IMAGE_PIXELS)
    data = np.fromfile(path, np.uint8)
    own = bytes(data[:4]) in (b"\x89PNG", b"RIFF")  # OpenCV turns these in some versions only
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | (cv2.IMREAD_IGNORE_ORIENTATION if own else 0))
    if image is None:
        raise UserError(f"{path}: damaged picture; save it again as PNG or JPEG.")
    layers = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data[0] != 0xFF else image
    if layers is not None and layers.ndim == 3 and layers.shape[2] == 4 and layers.shape[:2] == image.shape[:2]:
        alpha = layers[..., 3:] / np.float32(np.iinfo(layers.dtype).max)
        image = np.round(image * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(TURNS[_orientation(data.tobytes())](image)) if own else image


def _orientation(data: bytes) -> int:
    """EXIF's number, 1 to 8, of how a PNG or WebP file is to be turned; 1 where it does not say."""
    png = data.startswith(b"\x89PNG")
    at, order, name = (8, ">", b"eXIf") if png else (12, "<", b"EXIF")
    while at + 8 <= len(data):
        kind, length = (data[at + 4 : at + 8], data[at : at + 4]) if png else (data[at : at + 4], data[at + 4 : at + 8])
        length = struct.unpack(order + "I", length)[0]
        if kind == name:
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
            try:
                turn = _tags("<" if exif[:2] == b"II" else ">", io.BytesIO(exif), exif).get(ORIENTATION, 1)
            except (struct.error, ValueError):
                return 1
            return turn if turn in TURNS else 1
        at += 12 + length if png else 8 + length + length % 2
    return 1


def check_regular_file(path) -> None:
    """UserError, with the fix, for what is no local file that can be read."""
    if "://" in str(path):
        raise UserError(f"{path}: addresses are not opened; download the file and give its path.")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give one file.")
    if not os.path.exists(path):
        raise UserError(f"{path}: does not exist; check the path.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: is a pipe or device; give a regular file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read; change its permissions.")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: is empty; copy or export it again.")


def check_pixels(path, width: int, height: int, limit: int) -> None:
    """UserError where a picture is too large to be decoded."""
    if not 0 < width * height <= limit:
        # The decoder itself says 0x0 where it meets more than it may.
        size = f"{width}x{height}" if width * height else "the size of its pictures"
        raise UserError(f"{path}: {size} is over the limit of {limit:,} pixels; scale it down first.")


def _image_size(path) -> tuple[int, int]:
    with open(path, "rb") as file:
        head = file.read(32)
        reader = next((read for magic, read in IMAGE_HEADERS.items() if head.startswith(magic)), None)
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
            raise UserError(
                f"{path}: HEIC and AVIF are not read; convert it to JPEG first, as with ffmpeg or any photo program."
            )
        try:
            if reader is None:
                raise ValueError("unknown kind of file")
            return reader(head, file)
        except (ValueError, struct.error, KeyError, IndexError) as error:
            raise UserError(f"{path}: not a picture that can be read ({error}); give PNG, JPEG or WebP.") from None


def _jpeg_size(head, file):
    file.seek(2)
    while True:
        marker = struct.unpack(">H", file.read(2))[0]
        while marker == 0xFFFF:  # any number of bytes 0xFF may stand before a marker
            marker = 0xFF00 | file.read(1)[0]
        length = struct.unpack(">H", file.read(2))[0]
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return struct.unpack(">xHH", file.read(5))[::-1]
        if marker < 0xFF01 or length < 2:
            raise ValueError("broken JPEG header")
        file.seek(length - 2, os.SEEK_CUR)


def _webp_size(head, file):
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    return {
        b"VP8 ": lambda: tuple(v & 0x3FFF for v in struct.unpack("<HH", head[26:30])),
        b"VP8L": lambda: (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)),
        b"VP8X": lambda: (1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")),
    }[kind]()


def _tiff_size(head, file):
    tags = _tags("<" if head[:2] == b"II" else ">", file, head)
    return tags[256], tags[257]


def _tags(order: str, file, head: bytes) -> dict[int, int]:
    """First values of the tags in a TIFF's, or EXIF's, first directory."""
    file.seek(struct.unpack(order + "I", head[4:8])[0])
    entries = struct.unpack(order + "H", file.read(2))[0]
    tags = {}
    for _ in range(entries):
        tag, kind, _, value = struct.unpack(order + "HHI4s", file.read(12))
        tags[tag] = struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "I"), value)[0]
    return tags


IMAGE_HEADERS: dict[bytes, Callable] = {
    b"\x89PNG\r\n\x1a\n": lambda head, file: struct.unpack(">II", head[16:24]),
    b"\xff\xd8\xff": _jpeg_size,
    b"RIFF": _webp_size,
    b"BM": lambda head, file: tuple(map(abs, struct.unpack("<ii", head[18:26]))),
    b"II*\0": _tiff_size,
    b"MM\0*": _tiff_size,
    b"GIF8": lambda head, file: struct.unpack("<HH", head[6:10]),
}


def write_image(path, image: np.ndarray, metadata: dict[str, str] | None = None) -> None:
    """One (h, w, 3) uint8 picture as PNG; `metadata` becomes text chunks with capitalised keywords."""
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    texts = [b"tEXt%s\0%s" % (k.capitalize().encode(), v.encode()) for k, v in (metadata or {}).items()]
    chunks = [struct.pack(">I", len(t) - 4) + t + struct.pack(">I", zlib.crc32(t)) for t in texts]
    write_whole(Path(path), data[:PNG_HEAD] + b"".join(chunks) + data[PNG_HEAD:])


def enlarged(image: np.ndarray) -> np.ndarray:
    """A small model's picture in a whole multiple of its size, large enough to watch."""
    times = -(-SMALLEST_SHOWN // image.shape[0])
    return resize(image, (times * image.shape[1], times * image.shape[0]))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` at `size` = (width, height): area average where it shrinks, cubic where it grows."""
    if image.shape[1::-1] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def side_by_side(images: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures in one row, brought to the height of the first, white strips of `gap` pixels between."""
    height = images[0].shape[0]
    images = [resize(image, (round(image.shape[1] * height / image.shape[0]), height)) for image in images]
    strip = np.full((height, gap, 3), 255, np.uint8)
    return np.concatenate([part for i in images for part in (strip, i)][1:], axis=1)


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of pictures as one picture; shorter rows are filled up with white."""
    strips = [side_by_side(row, gap) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(r, ((gap, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in strips]
    return np.concatenate(strips)[gap:]
