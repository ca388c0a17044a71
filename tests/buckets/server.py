"""A storage server on loopback that speaks Google's JSON protocol, with what the emulator lacks.

The emulator keeps the objects. This adds preconditions (412), the generation of what is read,
pages, a log of requests, and faults on demand: throttling, outages, no rights, a full bucket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from urllib.parse import unquote

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

WRITES = ("POST", "PUT", "DELETE", "PATCH")


@dataclasses.dataclass(frozen=True)
class Call:
    """A request that came in."""

    method: str
    path: str  # decoded, without the query
    name: str  # the object or the prefix that it is about
    status: int
    time: float


@dataclasses.dataclass
class Fault:
    """An answer instead of the true one, for the next `times` calls that it is for."""

    status: int
    times: float
    concerns: Callable[[str, str], bool]
    is_done: bool  # what was asked for happens, and only the answer is lost


class Bucket:
    """The server; every test takes a bucket of its own.

    Fields:
      has_preconditions: whether it heeds `ifGenerationMatch`; the bare emulator does not.
      page: most items of a page of a listing.
      calls: what was asked so far.
      read_only, full, closed: refuses writes (403, 507), or anybody without credentials (401).
    """

    def __init__(self):
        self._storage = _Memory(use_memory_fs=True)
        self._guard, self._faults = threading.RLock(), list[Fault]()
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler)
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._httpd.server_address[1]}"
        self.calls: list[Call] = []
        self._plain()

    def _plain(self) -> None:
        self.has_preconditions, self.page = True, 7
        self.read_only = self.full = self.closed = False
        self.delay = 0.0

    def _handler(self, *args):
        return _Handler(self, self._storage, *args)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which gcsfs, epath, TensorStore and Google's client come here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def make(self, name: str) -> str:
        """A new bucket; its address."""
        resource = buckets.create_bucket(name, self._storage)
        assert resource, name
        resource["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
        return f"gs://{name}"

    def reset(self) -> None:
        """Without faults, calls and buckets."""
        with self._guard:
            self._storage.wipe()
            self._faults.clear()
            self.calls.clear()
            self._plain()

    def close(self) -> None:
        """Stops serving."""
        self._httpd.shutdown()
        self._httpd.server_close()

    # ---- what a test looks at or does behind the back of a run

    def names(self, address: str) -> list[str]:
        """Names of all objects below `gs://bucket/folder`, relative."""
        bucket, _, folder = address.removeprefix("gs://").partition("/")
        prefix = f"{folder}/" if folder else ""
        with self._guard:
            there = sorted(self._storage.objects.get(bucket, {}))
        return [name.removeprefix(prefix) for name in there if name.startswith(prefix)]

    def read(self, address: str) -> bytes:
        """The bytes of an object."""
        bucket, _, name = address.removeprefix("gs://").partition("/")
        with self._guard:
            return self._storage.get_file(bucket, name)

    def generation(self, address: str) -> int:
        """The generation of an object; 0 = there is none."""
        bucket, _, name = address.removeprefix("gs://").partition("/")
        with self._guard:
            return self._generation(bucket, name)

    def _generation(self, bucket: str, name: str) -> int:
        return int(self._storage.objects.get(bucket, {}).get(name, {}).get("generation", 0))

    def put(self, address: str, content: bytes) -> None:
        """Writes an object."""
        bucket, _, name = address.removeprefix("gs://").partition("/")
        with self._guard:
            made = objects._make_object_resource(
                self.url, bucket, name, "application/octet-stream", str(len(content))
            )
            made = objects._checksums(content, made)
            self._storage.create_file(bucket, name, content, made)

    def fail(
        self,
        status: int,
        times: float = 1,
        concerns: Callable = lambda method, name: True,
        is_done: bool = False,
    ) -> None:
        """The next calls get this status; `concerns(method, name)` chooses among them."""
        with self._guard:
            self._faults.append(Fault(status, times, concerns, is_done))

    def mend(self) -> None:
        """Takes `fail` back."""
        with self._guard:
            self._faults.clear()

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Call]]:
        """The calls that come in meanwhile."""
        seen: list[Call] = []
        with self._guard:
            start = len(self.calls)
        yield seen
        with self._guard:
            seen += self.calls[start:]

    # ---- an answer

    def fault(self, request: emulator.Request, path: str) -> Fault | None:
        """What a test asked for in place of the answer."""
        name = _name(request, path)
        for fault in self._faults:
            if fault.times > 0 and fault.concerns(request.method, name):
                fault.times -= 1
                return fault
        return None

    def refusal(self, request: emulator.Request, path: str) -> tuple[int, str] | None:
        """Status and reason of a refusal, or None."""
        if self.closed:
            return 401, "Anonymous caller does not have storage.objects.get access"
        if self.read_only and request.method in WRITES:
            return 403, "caller does not have storage.objects.create access"
        if self.full and request.method in ("POST", "PUT") and "/batch" not in path:
            return 507, "the bucket is full"
        return self._precondition(request, path) if self.has_preconditions else None

    def _precondition(self, request: emulator.Request, path: str) -> tuple[int, str] | None:
        wanted = request.query.get("ifGenerationMatch")
        unwanted = request.query.get("ifGenerationNotMatch")
        if not wanted and not unwanted:
            return None
        bucket = path.partition("/b/")[2].partition("/")[0]
        there = self._generation(bucket, _name(request, path))
        if wanted and int(wanted[0]) != there:
            return 412, "At least one of the pre-conditions you specified did not hold."
        if unwanted and int(unwanted[0]) == there:
            return 304, ""
        return None


def _name(request: emulator.Request, path: str) -> str:
    """The object, or the prefix, that a request is about."""
    said = request.query.get("name") or request.query.get("prefix")
    if said:
        return said[0]
    if path.partition("/o/")[2]:
        return path.partition("/o/")[2]
    data = request.data if request.method == "POST" else None  # of a multipart upload
    data = data.get("meta", data) if isinstance(data, dict) else {}
    return data.get("name", "")


class _Memory(Storage):
    def _write_config_to_file(self):
        pass  # the emulator writes all it knows to its memory disk at each change


class _Request(emulator.Request):
    @property
    def data(self):
        found = super().data
        return b"" if found is None and self.query.get("uploadType") == ["media"] else found


class _Response(emulator.Response):
    def refuse(self, status: int, message: str) -> None:
        self.status = HTTPStatus(status)
        self.json({"error": {"code": status, "message": message, "errors": [{"reason": message}]}})


class _Handler(emulator.RequestHandler):
    def __init__(self, bucket: Bucket, *args):
        self.bucket = bucket
        super().__init__(*args)

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def do_DELETE(self):
        self._answer("DELETE")

    def do_PATCH(self):
        self._answer("PATCH")

    def _answer(self, method: str) -> None:
        request, response = _Request(self, method), _Response(self)
        path = unquote(request.path)
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            _ = request.data  # read before an answer, or the client is cut off
        time.sleep(self.bucket.delay)
        with self.bucket._guard:
            fault = self.bucket.fault(request, path)
            refusal = self.bucket.refusal(request, path)
            if refusal:
                response.refuse(*refusal)
            elif fault is None or fault.is_done:
                self._ask_emulator(request, response, method)
            if fault is not None:
                response.refuse(fault.status, "asked for by a test")
            call = Call(method, path, _name(request, path), int(response.status), time.monotonic())
            self.bucket.calls.append(call)
        with contextlib.suppress(ConnectionError):  # the client was killed
            response.close()

    def _ask_emulator(self, request: _Request, response: _Response, method: str) -> None:
        fits = ((re.fullmatch(p, request.path), handlers) for p, handlers in emulator.HANDLERS)
        match, handlers = next(((m, h) for m, h in fits if m), (None, {}))
        if method not in handlers:
            response.refuse(501, f"{method} {request.path}")
            return
        request.set_match(match)
        bucket = request.params.get("bucket_name")
        if bucket is not None and bucket not in self.storage.buckets:
            response.refuse(404, "The specified bucket does not exist.")
            return
        handlers[method](request, response, self.storage)
        if request.path.endswith("/o") and method == "GET":
            self._cut(request, response)
        elif method == "GET" and "object_id" in request.params and response.status < 300:
            there = self.bucket._generation(bucket, request.params["object_id"])
            response["X-Goog-Generation"] = str(there)
        elif response.status == 404:
            response.refuse(404, f"No such object: {request.path}")

    def _cut(self, request: _Request, response: _Response) -> None:
        """One page of a listing, by name as the real one; prefixes count as items."""
        if response.status != 200:
            return
        listing = json.loads(response._content)
        items = {item["name"]: ("items", item) for item in listing.get("items", [])}
        items |= {prefix: ("prefixes", prefix) for prefix in listing.get("prefixes", [])}
        after = request.query.get("pageToken", [""])[0]
        names = sorted(name for name in items if name > after)
        size = min(int(request.query.get("maxResults", ["1000"])[0]), self.bucket.page)
        page = {"kind": "storage#objects", "items": [], "prefixes": []}
        for name in names[:size]:
            key, value = items[name]
            page[key].append(value)
        if len(names) > size:
            page["nextPageToken"] = names[size - 1]
        response.json({key: value for key, value in page.items() if value})


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """A server, and the environment of this process that leads to it."""
    bucket = Bucket()
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    try:
        yield bucket
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        bucket.close()
