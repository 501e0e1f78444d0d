# SPDX-License-Identifier: Apache-2.0
"""A process: the part of S3 that a store needs, strict about conditions, and as unkind as a test wants it.

`python bucket_server.py` prints its address and serves until its standard input closes. Tests steer it through
`/-/...`, see `servers.py`. As a plain web server it gives `/BUCKET/KEY` with ranges, to anyone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


@dataclass
class Object:
    """A version of an object, and the one before it."""

    data: bytes
    previous: Object | None = None
    modified: float = field(default_factory=time.time)
    etag: str = ""

    def __post_init__(self) -> None:
        # once: hashing a large object for every range of it would be most of a request's time
        self.etag = f'"{hashlib.md5(self.data).hexdigest()}"'


@dataclass
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Bucket:
    """All objects, by `bucket/key`. Every method is atomic."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.finished: dict[str, Answer] = {}
        self.log: list[dict] = []
        self.rules: list[dict] = []
        self.latency = 0.0

    def rule_for(self, method: str, key: str) -> dict:
        """The first rule that applies to a request; all that match it are counted."""
        with self.lock:
            found: dict = {}
            for rule in self.rules:
                if not (re.fullmatch(rule["method"], method) and re.search(rule["key"], key)):
                    continue
                if rule["skip"] > 0:
                    rule["skip"] -= 1
                elif not found and rule["times"] != 0:
                    rule["times"] -= 1
                    found = rule
            return found

    def put(self, name: str, data: bytes, headers, *, unconditional: bool = False) -> Answer:
        with self.lock:
            old = self.objects.get(name)
            wanted = headers.get("If-Match")
            if not unconditional:
                if headers.get("If-None-Match") == "*" and old is not None:
                    return failure(412, "PreconditionFailed")
                if wanted is not None and old is None:
                    return failure(404, "NoSuchKey")
                if wanted is not None and old is not None and wanted.strip('"') != old.etag.strip('"'):
                    return failure(412, "PreconditionFailed")
            self.objects[name] = made = Object(data, old)
            return Answer(headers={"ETag": made.etag})

    def get(self, name: str, headers, *, stale: bool = False) -> Answer:
        with self.lock:
            found = self.objects.get(name)
            if stale and found is not None:
                found = found.previous
        if found is None:
            return failure(404, "NoSuchKey")
        data, size = found.data, len(found.data)
        modified = formatdate(found.modified, usegmt=True)
        common = {"ETag": found.etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        if headers.get("If-None-Match", "").strip('"') == found.etag.strip('"'):
            return Answer(304, headers=common)
        if headers.get("If-Match", found.etag).strip('"') != found.etag.strip('"'):
            return failure(412, "PreconditionFailed")
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
        if span is None or span[0] == "bytes=-":
            return Answer(200, data, common)
        first, last = span[1], span[2]
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            return Answer(416, headers={"Content-Range": f"bytes */{size}"})
        return Answer(206, data[start:stop], common | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter, most = query.get("prefix", ""), query.get("delimiter", ""), int(query.get("max-keys", 1000))
        after = max(query.get("start-after", ""), query.get("continuation-token", ""))
        contents, folders, truncated = [], [], ""
        with self.lock:
            names = sorted(n.removeprefix(f"{bucket}/") for n in self.objects if n.startswith(f"{bucket}/{prefix}"))
            for key in names:
                folder = prefix + key[len(prefix) :].split(delimiter)[0] + delimiter if delimiter else ""
                is_folder = bool(delimiter) and delimiter in key[len(prefix) :]
                if key <= after or (is_folder and (folder in folders or after.startswith(folder))):
                    continue
                if len(contents) + len(folders) == most:
                    truncated = (folders + contents)[-1] if not contents else max(contents[-1], *folders, "")
                    break
                (folders if is_folder else contents).append(folder if is_folder else key)
            rows = "".join(self._row(bucket, key) for key in contents)
        rows += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        more = f"<NextContinuationToken>{escape(truncated)}</NextContinuationToken>" if truncated else ""
        return xml(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
            f"<KeyCount>{len(contents) + len(folders)}</KeyCount>"
            f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>{more}{rows}</ListBucketResult>"
        )

    def _row(self, bucket: str, key: str) -> str:
        found = self.objects[f"{bucket}/{key}"]
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified))
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
            f"<ETag>{escape(found.etag)}</ETag><Size>{len(found.data)}</Size></Contents>"
        )

    def delete(self, name: str) -> Answer:
        with self.lock:
            self.objects.pop(name, None)
        return Answer(204)

    def delete_many(self, bucket: str, body: bytes) -> Answer:
        keys = [key.text or "" for key in ElementTree.fromstring(body).iter() if key.tag.rpartition("}")[2] == "Key"]
        for key in keys:
            self.delete(f"{bucket}/{key}")
        rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return xml(f"<DeleteResult>{rows}</DeleteResult>")

    def begin_upload(self, bucket: str, key: str) -> Answer:
        number = uuid.uuid4().hex
        with self.lock:
            self.uploads[number] = {}
        return xml(
            f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
        )

    def put_part(self, upload: str, part: int, data: bytes) -> Answer:
        with self.lock:
            if upload not in self.uploads:
                return failure(404, "NoSuchUpload")
            self.uploads[upload][part] = data
        return Answer(headers={"ETag": Object(data).etag})

    def complete_upload(self, name: str, upload: str, headers) -> Answer:
        with self.lock:
            parts = self.uploads.get(upload)
            if parts is not None:
                answer = self.put(name, b"".join(parts[n] for n in sorted(parts)), headers)
                if answer.status != 200:
                    return answer
                del self.uploads[upload]
                self.finished[upload] = answer
            elif upload not in self.finished:
                return failure(404, "NoSuchUpload")
            # S3 says the same again to who asks again
            answer = self.finished[upload]
        bucket, _, key = name.partition("/")
        etag = escape(answer.headers["ETag"])
        return xml(
            f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        )

    def control(self, verb: str, wish: dict) -> Answer:
        """What tests ask for."""
        with self.lock:
            match verb:
                case "faults":
                    self.rules = wish["rules"]
                case "latency":
                    self.latency = wish["seconds"]
                case "log":
                    log, self.log = self.log, []
                    return Answer(200, json.dumps(log).encode())
                case "age":
                    for name, found in self.objects.items():
                        if name.startswith(wish["prefix"]):
                            found.modified -= wish["seconds"]
                case "tree":
                    root = Path(wish["folder"])
                    for path in (p for p in root.rglob("*") if p.is_file()):
                        name = f"{wish['prefix']}/{path.relative_to(root).as_posix()}"
                        self.objects[name] = Object(path.read_bytes(), self.objects.get(name))
                case "clear":
                    self.objects, self.uploads, self.log, self.rules, self.latency = {}, {}, [], [], 0.0
                case "uploads":
                    return Answer(200, json.dumps(len(self.uploads)).encode())
                case _:
                    return failure(404, "NoSuchVerb")
        return Answer()


def xml(text: str) -> Answer:
    return Answer(200, b'<?xml version="1.0"?>\n' + text.encode(), {"Content-Type": "application/xml"})


def failure(status: int, code: str) -> Answer:
    answer = xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")
    answer.status = status
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: Bucket

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        name, query = unquote(parts.path).lstrip("/"), {k: v[0] for k, v in parse_qs(parts.query, True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket = self.bucket
        if name.startswith("-/"):
            self._send(bucket.control(name[2:], json.loads(body or b"{}")))
            return
        time.sleep(bucket.latency)
        key = name.partition("/")[2] or query.get("prefix", "")
        rule = bucket.rule_for(self.command, key)
        kind = rule.get("kind", "")
        if kind == "slow":
            time.sleep(rule["seconds"])
        if kind in {"drop", "status"}:
            answer = failure(rule["status"], "Fault")
        else:
            if kind == "flip" and self.command in {"PUT", "POST"} and body:
                body = flipped(body)
            answer = self._answer(name, query, body, kind)
        size = len(answer.body) if self.command != "HEAD" else 0
        entry = {"method": self.command, "key": key, "query": query, "range": self.headers.get("Range", "")}
        with bucket.lock:
            bucket.log.append(entry | {"status": answer.status, "bytes": size, "received": len(body), "fault": kind})
        if kind in {"drop", "lost"}:
            self.close_connection = True
            return
        if kind == "lost_status":
            answer = failure(rule["status"], "Fault")
        if kind == "flip" and self.command == "GET" and answer.body:
            answer.body = flipped(answer.body)
        self._send(answer, cut=kind == "truncate")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self, name: str, query: dict[str, str], body: bytes, kind: str) -> Answer:
        bucket, (root, _, key) = self.bucket, name.partition("/")
        checksum = self.headers.get("x-amz-checksum-sha256")
        if checksum is not None and base64.b64decode(checksum) != hashlib.sha256(body).digest():
            return failure(400, "BadDigest")
        match self.command:
            case "PUT" if not key:
                return Answer()
            case "PUT" if "uploadId" in query:
                return bucket.put_part(query["uploadId"], int(query["partNumber"]), body)
            case "PUT":
                return bucket.put(name, body, self.headers, unconditional=kind == "unconditional")
            case "POST" if "uploads" in query:
                return bucket.begin_upload(root, key)
            case "POST" if "uploadId" in query:
                return bucket.complete_upload(name, query["uploadId"], self.headers)
            case "POST" if "delete" in query:
                return bucket.delete_many(root, body)
            case "DELETE" if "uploadId" in query:
                bucket.uploads.pop(query["uploadId"], None)
                return Answer(204)
            case "DELETE":
                return bucket.delete(name)
            case "GET" if not key and "list-type" in query:
                return bucket.list(root, query)
            case "GET" | "HEAD":
                return bucket.get(name, self.headers, stale=kind == "stale")
        return failure(400, "NotImplemented")

    def _send(self, answer: Answer, *, cut: bool = False) -> None:
        self.send_response(answer.status)
        for header, value in answer.headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *args: object) -> None:
        """`/-/log` has them."""


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go at any time; what is wrong with the server itself is for its log."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    Handler.bucket = Bucket()
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"Running on http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
