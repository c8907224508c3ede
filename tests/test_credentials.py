"""Signed results, read again by C2PA's own reader."""

import datetime
import json

import numpy as np
import pytest

from svdp_jax.animator import provenance
from svdp_jax.errors import UserError
from svdp_jax.media import credentials, video
from svdp_jax.media.writer import VideoWriter

c2pa = pytest.importorskip("c2pa", reason="signing needs c2pa-python, of the extra `sign`")
x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

TAGS = provenance("sha256:1234")


def certificate(name, key, issuer, issuer_key, authority: bool):
    """An X.509 certificate as C2PA asks for it."""
    named = lambda name: x509.Name(
        [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "a studio"), x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    )
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
        False,
    )
    build = (
        x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )  # fmt: skip
    if not authority:
        build = build.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return build.sign(issuer_key, hashes.SHA256())


def pem(key) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """Files of a certificate chain and of its key."""
    folder = tmp_path_factory.mktemp("signer")
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = certificate("one", own, "root", root, False), certificate("root", root, "root", root, True)
    (folder / "chain.pem").write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    (folder / "key.pem").write_bytes(pem(own))
    return folder / "chain.pem", folder / "key.pem"


def written(path, signer):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with VideoWriter(path, 25, metadata=TAGS, finish=credentials.signing(*signer, TAGS)) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def credentials_of(path):
    """The action that made a file, and what is wrong with its signature beyond an unknown root."""
    with c2pa.Reader(str(path)) as reader:
        told = json.loads(reader.json())
    active = told["manifests"][told["active_manifest"]]
    (actions,) = (part["data"] for part in active["assertions"] if part["label"].startswith("c2pa.actions"))
    wrong = {status["code"] for status in told.get("validation_status", [])} - {"signingCredential.untrusted"}
    return actions["actions"][0], wrong


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.png"])
def test_a_signed_file_says_what_made_it_and_tells_when_it_was_changed(signer, tmp_path, name):
    made = written(tmp_path / name, signer)
    files = [made] if made.exists() else sorted(made.with_suffix("").iterdir())
    assert len(files) == (3 if name == "out.png" else 1)
    for path in files:
        action, wrong = credentials_of(path)
        assert action["action"] == "c2pa.created" and "sha256:1234" in action["description"]
        assert action["digitalSourceType"].endswith("trainedAlgorithmicMedia") and not wrong
    if name == "out.mp4":
        assert len(list(video.read_frames(made))) == 3
    bytes_ = bytearray(path.read_bytes())
    bytes_[-20] ^= 1
    path.write_bytes(bytes_)
    assert credentials_of(path)[1]


def test_what_cannot_sign_is_one_sentence_and_leaves_nothing(signer, tmp_path):
    chain, key = signer
    (tmp_path / "text.pem").write_text("this is no key")
    (tmp_path / "other.pem").write_bytes(pem(x25519.X25519PrivateKey.generate()))
    for files, sentence in (
        ((chain, tmp_path / "text.pem"), "no unencrypted private key"),
        ((chain, tmp_path / "none.pem"), "cannot be read as PEM"),
        ((chain, tmp_path / "other.pem"), "no signature by such a key"),
        ((tmp_path / "text.pem", key), "cannot sign"),
    ):
        with pytest.raises(UserError, match=sentence):
            written(tmp_path / "out.mp4", files)
    assert {path.name for path in tmp_path.iterdir()} == {"text.pem", "other.pem"}
