# SPDX-License-Identifier: Apache-2.0
"""`serve`: what it does not give, whoever asks and however."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_world import listed, make, serving, url
from store_builder import fast_folder

from ditr_cache.pipelines.serve_objects import ServedObjects


@pytest.fixture(scope="module")
def store():
    """Do not write to it."""
    with fast_folder() as folder:
        yield make(folder / "store")


@pytest.fixture(scope="module")
def server(store):
    with serving(store) as started:
        yield started


@pytest.fixture
def own(tmp_path):
    return make(tmp_path / "store")


def test_nothing_else_is_known(store):
    """The table is the list: nothing in the folder is in it by accident."""
    objects = ServedObjects(store)
    rest = {"LATEST", "zarr.json", "STORE_CARD.md", f"manifest-{objects.version}.sig"}
    assert set(objects._listed) == set(listed(store)) | rest


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/blocks",
        "/blocks/",
        "/receipts/",
        "/plans/",
        "//LATEST",
        "/LATEST/",
        "/./LATEST",
        "/LATEST%00",
        "/LATEST%20",
        "/latest",
        "/blocks/../LATEST",
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%5c..%5cetc%5cpasswd",
        "/%2Fetc%2Fpasswd",
        "//etc/passwd",
        "/%ff%fe",
        "/%",
        "/LATEST%",
        "/.lock",
        "http://elsewhere/LATEST",
        "/" + "a" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_hostile_paths_lead_nowhere(server, path, method):
    status, _, body = server.get(path, method)
    assert status == 404
    assert body == (b"no such object\n" if method == "GET" else b"")


def test_what_lies_in_the_store_and_is_not_listed_is_not_given(server, store):
    (plan,) = (store / "plans").iterdir()
    (store / "secret.txt").write_text("secret")
    (store / "failures").mkdir(exist_ok=True)
    (store / "failures/x.json").write_text("secret")
    block = next(path for path in (store / "blocks").iterdir())
    (block / "notes.txt").write_text("secret")
    for key in (f"plans/{plan.name}", "secret.txt", "failures/x.json", f"blocks/{block.name}/notes.txt"):
        assert (store / key).is_file()
        assert server.get(url(key))[0] == 404


def test_a_listed_path_with_its_slashes_in_disguise_is_none(server, store):
    key = next(key for key in listed(store) if key.startswith("blocks/"))
    assert server.get(url(key))[0] == 200
    for slash in ("%2f", "%2F"):
        assert server.get("/" + key.replace("%", "%25").replace("/", slash))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE"])
def test_nothing_can_be_changed(server, method):
    status, headers, _ = server.get("/LATEST", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_are_not_followed(own, tmp_path, what):
    with serving(own) as server:
        key = next(key for key in listed(own) if key.endswith("features/c/0/0"))
        path = own / key if what == "file" else (own / key).parent
        assert server.get(url(key))[0] == 200
        # even to the same bytes
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert (own / key).is_file()
        assert server.get(url(key))[0] == 404
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
        assert server.get(url(key))[0] == 200
        code, err = server.stop()
    assert code == 0
    assert "symbolic link" in err


def test_what_is_damaged_or_gone_is_not_given(own):
    with serving(own) as server:
        first, second = [key for key in listed(own) if key.endswith("coord/c/0/0")]
        with (own / first).open("ab") as file:
            file.write(b"more")
        (own / second).unlink()
        assert server.get(url(first))[0] == 404
        assert server.get(url(second))[0] == 404
        _, err = server.stop()
    assert "the manifest says" in err
    assert "missing" in err


def test_a_manifest_that_cannot_be_read_is_no_news(own):
    good = (own / "LATEST").read_bytes()
    objects = listed(own)
    with serving(own) as server:
        (own / "LATEST").write_text(f"manifest-{'0' * 64}.json\n")
        assert server.get("/LATEST")[0] == 503
        assert all(server.get(url(key))[0] == 200 for key in objects)
        (own / "LATEST").write_bytes(good)
        assert server.get("/LATEST")[2] == good
        code, err = server.stop()
    assert code == 0
    assert "missing" in err
    assert "Traceback" not in err


def test_a_signature_is_given_where_there_is_one(own):
    with serving(own) as server:
        name = f"manifest-{server.manifest}.sig"
        assert server.get(f"/{name}")[0] == 404
        (own / name).write_bytes(b"signed")
        assert server.get(f"/{name}")[2] == b"signed"
        (own / f"manifest-{'0' * 64}.sig").write_bytes(b"signed")
        assert server.get(f"/manifest-{'0' * 64}.sig")[0] == 404


@pytest.mark.parametrize("way", ["env", "file"])
def test_token(own, tmp_path, way):
    token = "t0ken-that-nobody-knows"
    if way == "env":
        options, env = ["--token-env", "STORE_TOKEN"], {"STORE_TOKEN": token}
    else:
        (tmp_path / "token").write_text(f"{token}\n")
        options, env = ["--token-file", tmp_path / "token"], None
    with serving(own, "-v", *options, env=env) as server:
        for given in (None, token, "Bearer ", "Bearer x", f"Basic {token}", f"Bearer {token}x", f"Bearer {token[:-1]}"):
            for path, method in (("/LATEST", "GET"), ("/nothing", "HEAD"), ("/LATEST", "PUT")):
                status, headers, body = server.get(path, method, {"Authorization": given} if given else {})
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert b"manifest" not in body
        assert server.get("/LATEST", headers={"Authorization": "Bearer tökén".encode("latin-1")})[0] == 401
        for scheme in ("Bearer", "bearer"):
            assert server.get("/LATEST", headers={"Authorization": f"{scheme} {token}"})[0] == 200
        assert token not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
        code, err = server.stop()
    assert code == 0
    assert '"GET /LATEST HTTP/1.1" 401' in err
    assert token not in err
