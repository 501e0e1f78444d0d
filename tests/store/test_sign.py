# SPDX-License-Identifier: Apache-2.0
"""A signature vouches for one version of one store, by one key, and for nothing else."""

import base64
import json
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from store_builder import build_store, random_block

from ditr_cache.errors import ConfigError, SignatureError
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.reader import open_store
from ditr_cache.store.sign import check_signature, make_keys, sign_version, signature_key
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "key.pem", tmp_path / "pub.pem")
    return tmp_path / "key.pem", tmp_path / "pub.pem"


@pytest.fixture
def store(tmp_path):
    build_store(tmp_path / "s", [random_block(1)])
    return tmp_path / "s"


def sign(store, private) -> str:
    version = open_store(store).version
    (store / signature_key(version)).write_bytes(sign_version(version, private)[0])
    return version


def test_signed_and_checked(store, keys):
    version = sign(store, keys[0])
    fingerprint = check_signature(LocalStorage(store), version, keys[1])
    assert fingerprint == sign_version(version, keys[0])[1]
    report = verify_store(store)
    assert (report.problems, report.notes) == ((), ())


def test_anybody_can_check_it_without_this_program(store, keys):
    version = sign(store, keys[0])
    document = json.loads((store / f"manifest-{version}.sig").read_bytes())
    key = load_pem_private_key(keys[0].read_bytes(), None).public_key()
    message = b"ditr-cache manifest, format version 1\n" + bytes.fromhex(version)
    key.verify(base64.b64decode(document["signature"]), message)


def test_no_signature(store, keys):
    with pytest.raises(SignatureError, match="is not signed"):
        check_signature(LocalStorage(store), open_store(store).version, keys[1])


def test_a_store_that_changed_is_not_signed_any_more(store, keys):
    sign(store, keys[0])
    writer = StoreWriter(store)
    build_store(store, [random_block(2, "more")])
    writer.finalize()
    with pytest.raises(SignatureError, match="is not signed"):
        check_signature(LocalStorage(store), open_store(store).version, keys[1])


def test_another_key(store, keys, tmp_path):
    version = sign(store, keys[0])
    make_keys(tmp_path / "key2.pem", tmp_path / "pub2.pem")
    with pytest.raises(SignatureError, match="signed with another key"):
        check_signature(LocalStorage(store), version, tmp_path / "pub2.pem")


def test_the_signature_of_another_version(store, keys):
    version = sign(store, keys[0])
    (store / signature_key(version)).write_bytes(sign_version("0" * 64, keys[0])[0])
    with pytest.raises(SignatureError, match="the signature is wrong"):
        check_signature(LocalStorage(store), version, keys[1])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff" * 64,
        b"x" * 100_000,
        b"[" * 4000,
        b'{"algorithm":"none","key":"%s","signature":"","version":"%s"}' % (b"0" * 64, b"0" * 64),
        b'{"algorithm":"ed25519","key":"%s","signature":"?!","version":"%s"}' % (b"0" * 64, b"0" * 64),
    ],
)
def test_what_is_no_signature(store, keys, data):
    version = open_store(store).version
    (store / signature_key(version)).write_bytes(data)
    with pytest.raises(SignatureError, match="is no signature"):
        check_signature(LocalStorage(store), version, keys[1])


def test_empty_signatures_sign_nothing(store, keys):
    version = sign(store, keys[0])
    path = store / signature_key(version)
    document = json.loads(path.read_bytes())
    for signature in (b"", b"\0" * 64, b"\0" * 63):
        path.write_text(json.dumps({**document, "signature": base64.b64encode(signature).decode()}))
        with pytest.raises(SignatureError, match="the signature is wrong"):
            check_signature(LocalStorage(store), version, keys[1])


def test_only_the_owner_reads_the_private_key(keys):
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    assert b"PRIVATE" not in keys[1].read_bytes()


@pytest.mark.parametrize("name", ["key.pem", "pub.pem"])
def test_keys_are_not_overwritten(keys, tmp_path, name):
    before = [path.read_bytes() for path in keys]
    other = {"key.pem": "new", "pub.pem": "new"} | {name: name}
    with pytest.raises(ConfigError, match="keys are not overwritten"):
        make_keys(tmp_path / other["key.pem"], tmp_path / other["pub.pem"])
    assert [path.read_bytes() for path in keys] == before
    assert not (tmp_path / "new").exists()


def test_links_are_not_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        make_keys(tmp_path / "link", tmp_path / "pub")
    assert not (tmp_path / "elsewhere").exists()


def test_keys_of_other_kinds(tmp_path, store, keys):
    version = sign(store, keys[0])
    rsa, own = generate_private_key(65537, 2048), Ed25519PrivateKey.generate()
    pkcs8, pem = PrivateFormat.PKCS8, Encoding.PEM
    (tmp_path / "rsa").write_bytes(rsa.private_bytes(pem, pkcs8, NoEncryption()))
    (tmp_path / "rsa.pub").write_bytes(rsa.public_key().public_bytes(pem, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "secret").write_bytes(own.private_bytes(pem, pkcs8, BestAvailableEncryption(b"x")))
    (tmp_path / "text").write_text("no key")
    for name, match in (("rsa", "not an Ed25519 key"), ("secret", "passphrase"), ("text", "no private key")):
        with pytest.raises(ConfigError, match=match):
            sign_version(version, tmp_path / name)
    for name, match in (("rsa.pub", "not an Ed25519 key"), ("key.pem", "no public key"), ("text", "no public key")):
        with pytest.raises(ConfigError, match=match):
            check_signature(LocalStorage(store), version, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        sign_version(version, tmp_path / "nowhere")


def test_signatures_go_with_their_manifests(store, keys):
    version = sign(store, keys[0])
    build_store(store, [random_block(2, "more")], finalize=False)
    writer = StoreWriter(store)
    writer.finalize()
    # a reader may be looking for it
    assert (store / signature_key(version)).exists()
    new = sign(store, keys[0])
    removed = writer.collect(now=True)
    assert {f"manifest-{version}.json", signature_key(version)} <= set(removed)
    assert (store / signature_key(new)).exists()


def test_without_cryptography_it_says_what_to_install(tmp_path, store):
    """In a process of its own, in which the package cannot be imported."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "from ditr_cache.store.sign import make_keys\n"
        "try: make_keys(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=True
    )
    assert "pip install 'ditr-cache[sign]'" in done.stdout
    assert not (tmp_path / "a").exists()
