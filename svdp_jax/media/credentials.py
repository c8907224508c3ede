"""Content Credentials (C2PA, https://c2pa.org): a signed manifest inside a file that says it is generated.

Anybody can take the plain tags off a file or change them; a signature tells that they were. It
takes a certificate for signing, which C2PA's trust lists name the makers of, and its private key.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import svdp_jax
from svdp_jax.errors import UserError

FORMATS = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
# C2PA's names of algorithms by the key's curve, or by its kind where there is no curve.
ALGORITHMS = {
    "secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512", "Ed25519PrivateKey": "ed25519", "RSAPrivateKey": "ps256",
}  # fmt: skip


def signing(certificates: Path, key: Path, provenance: dict[str, str]) -> Callable[[Path], None]:
    """What signs a finished file, or every file of a folder, in its place.

    certificates: PEM, the signer's own first, then the chain to a root. key: PEM, unencrypted.
    provenance: tags of `animator.provenance`. UserError for what cannot sign.
    """
    try:
        import c2pa
    except ImportError:
        raise UserError("signing needs c2pa-python; pip install 'svdp_jax[sign]'.") from None
    chain, secret = (read(path) for path in (certificates, key))
    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm(secret, key), chain, secret, None))
    except c2pa.C2paError as error:
        raise UserError(f"{certificates} and {key} cannot sign: {error}.") from None

    def sign(path: Path) -> None:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            signed = file.with_name(f".signed{file.suffix}")
            try:
                with c2pa.Builder.from_json(manifest(file.name, provenance)) as builder:
                    with file.open("rb") as source, signed.open("w+b") as target:
                        builder.sign(signer, FORMATS[file.suffix.lower()], source, target)
            except c2pa.C2paError as error:
                raise UserError(f"{certificates} cannot sign {file.name}: {error}.") from None
            os.replace(signed, file)

    return sign


def manifest(title: str, provenance: dict[str, str]) -> str:
    """C2PA's manifest of a generated file, as JSON."""
    program = {"name": "svdp_jax", "version": svdp_jax.__version__}
    made = {
        "action": "c2pa.created", "softwareAgent": program, "description": provenance["comment"],
        "digitalSourceType": provenance["digital_source_type"],
    }  # fmt: skip
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [made]}}
    return json.dumps({"title": title, "claim_generator_info": [program], "assertions": [actions]})


def read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        raise UserError(f"{path}: cannot be read as PEM; give the certificate chain, then its private key.") from None


def algorithm(secret: bytes, path: Path) -> str:
    """The name of the signature that a private key makes."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path}: holds no unencrypted private key in PEM.") from None
    names = [getattr(getattr(key, "curve", None), "name", ""), *(kind.__name__ for kind in type(key).__mro__)]
    known = [ALGORITHMS[name] for name in names if name in ALGORITHMS]
    if not known:
        raise UserError(f"{path}: C2PA knows no signature by such a key; take one on the curve P-256.")
    return known[0]
