"""Pictures as phones and image programs write them."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.media.images import read_image

STORED = np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4) * 2
STORED[..., 3] = np.where(np.arange(6) < 3, 255, 0)  # the right half is transparent
WHITE = np.where(STORED[..., 3:] == 255, STORED[..., 2::-1], 255)
TURNED = {
    1: WHITE, 2: WHITE[:, ::-1], 3: np.rot90(WHITE, 2), 4: WHITE[::-1],
    5: WHITE.transpose(1, 0, 2), 6: np.rot90(WHITE, -1), 7: np.rot90(WHITE, 2).transpose(1, 0, 2), 8: np.rot90(WHITE),
}  # fmt: skip


def exif(turn: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, turn, 0, 0)


def png(turn: int, pixels) -> bytes:
    data, chunk = cv2.imencode(".png", pixels)[1].tobytes(), b"eXIf" + exif(turn)
    return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def webp(turn: int, pixels) -> bytes:
    stored = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    height, width = pixels.shape[:2]
    picture = stored[stored.index(b"VP8L") :]
    flags = 0x08 | (0x10 if pixels.shape[2] == 4 else 0)
    head = struct.pack("<4sIB3x", b"VP8X", 10, flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    about = struct.pack("<4sI", b"EXIF", len(exif(turn))) + exif(turn)
    body = b"WEBP" + head + picture + about
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("make", [png, webp])
@pytest.mark.parametrize("turn", TURNED)
def test_transparent_pictures_are_turned_upright(tmp_path, make, turn):
    (tmp_path / "a").write_bytes(make(turn, STORED))
    assert np.array_equal(read_image(tmp_path / "a"), TURNED[turn])


@pytest.mark.parametrize("make", [png, webp])
def test_opaque_pictures_are_turned_once(tmp_path, make):
    (tmp_path / "a").write_bytes(make(6, np.ascontiguousarray(STORED[..., :3])))
    assert np.array_equal(read_image(tmp_path / "a"), np.rot90(STORED[..., 2::-1], -1))


def test_fill_bytes_before_a_marker_are_passed_over(tmp_path):
    data = cv2.imencode(".jpg", STORED[..., :3])[1].tobytes()
    (tmp_path / "plain.jpg").write_bytes(data)
    at = data.index(b"\xff\xc0")
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff" * 3 + data[2:at] + b"\xff" * 5 + data[at:])
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_heif_is_refused_with_the_remedy(tmp_path, brand):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    with pytest.raises(UserError, match="convert it to JPEG"):
        read_image(tmp_path / "a.heic")
