"""Paths in a bucket, through fsspec: few round trips, and errors in words.

A bucket has objects and no folders: a folder is there as soon as an object is below it. An object
is complete once it is visible, and is replaced as a whole. Listings are never cached, since other
processes write too. gcsfs itself repeats what fails for a moment (429, 5xx, a lost connection),
six times in about 20 s; nothing here repeats it again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

__all__ = [
    "PARALLEL",
    "Stat",
    "chunks",
    "copy",
    "delete",
    "download",
    "explained",
    "kind",
    "listing",
    "names",
    "read",
    "read_all",
    "stat",
    "told",
    "upload",
    "write",
]

EXTRAS = {"gs": "cloud", "gcs": "cloud"}  # protocol -> extra of mmjax with what reads it
CHUNK = 1 << 26  # bytes of one request
PARALLEL = 16  # requests at a time, where several objects are copied
CREDENTIALS = (
    "log in by `gcloud auth application-default login`, or name a key file in"
    " GOOGLE_APPLICATION_CREDENTIALS; on a machine of the cloud give its service account access"
)
_seen: set[str] = set()  # buckets that have answered


class Stat(NamedTuple):
    """Size of an object, and a mark that changes when it is written again."""

    size: int
    version: str


def system(path: Any) -> Any:
    """The fsspec file system of a path such as gs://bucket/folder.

    Raises:
      ConfigError: the package for it is not installed.
    """
    import fsspec
    from fsspec.config import conf

    protocol = os.fspath(path).partition("://")[0]
    protocol = "gcs" if protocol == "gs" else protocol
    conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)  # for epath and Orbax too
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # prints tracebacks of what is told here
    try:
        options = {"finalize_on_close": True} if protocol == "gcs" else {}  # that of epath
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise _not_installed(path, error) from error


def _not_installed(path: Any, error: Exception) -> Exception:
    from mmjax.config.error import ConfigError

    protocol = os.fspath(path).partition("://")[0]
    extra = EXTRAS.get(protocol)
    remedy = f"pip install 'mmjax[{extra}]'" if extra else "install the fsspec package for it"
    return ConfigError(f"Path {os.fspath(path)!r}: cannot be opened here ({error}); {remedy}.")


# ----------------------------------------------------------------------------- errors


@contextlib.contextmanager
def told(path: Any) -> Iterator[None]:
    """Turns errors of a storage service into StorageError or ConfigError that say what to do.

    FileNotFoundError and FileExistsError go through: they are answers, not failures.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, IsADirectoryError):
        raise
    except Exception as error:
        known = explained(error, path)
        if known is None:
            raise
        raise known from error


def explained(error: BaseException, path: Any = "") -> Exception | None:
    """The error for the user that a failure of a storage service stands for; None = another one."""
    from mmjax.errors import ConfigError, StorageError

    if isinstance(error, (ConfigError, StorageError)):
        return None
    if isinstance(error, ImportError):
        return _not_installed(path, error) if "://" in os.fspath(path) else None
    service = type(error).__module__.partition(".")[0]
    status = _status(error)
    if status in (404, 412):  # answers, not failures
        return None
    if not status and service not in ("google", "gcsfs", "aiohttp", "requests", "urllib3"):
        return None
    where = f"{os.fspath(path)}: " if os.fspath(path) else ""
    message = re.search(r'"message": "([^"]*)"', str(error))  # Google's client quotes the answer
    said = " ".join((message[1] if message else str(error)).split())[:300]
    if status == 401 or "auth" in type(error).__module__:
        return StorageError(f"{where}no valid credentials for this bucket ({said}); {CREDENTIALS}.")
    if status == 403:
        return StorageError(
            f"{where}permission denied ({said}); give this account the role Storage Object User"
            " (roles/storage.objectUser) on the bucket, or choose another path."
        )
    if status in (507, errno.ENOSPC) or "quota" in said.lower():
        return StorageError(
            f"{where}the storage is full ({said}); free space or raise the quota, then start the"
            " same command again."
        )
    named = os.environ.get("STORAGE_EMULATOR_HOST")
    also = f" and STORAGE_EMULATOR_HOST={named}" if named else ""
    what = f"answers {status}" if status else f"cannot be reached ({type(error).__name__})"
    return StorageError(
        f"{where}the storage {what} after several tries ({said}); start the same command again when"
        f" it works, or check the network{also}."
    )


def _status(error: BaseException) -> int:
    """HTTP status of an error of gcsfs or of Google's client; 0 = none."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs
        return 403
    code = getattr(error, "code", None)
    code = code() if callable(code) else code
    with contextlib.suppress(TypeError, ValueError):
        return int(getattr(code, "value", code))  # type: ignore[arg-type]
    return 0


def refuse_absent(path: Any) -> None:
    """Raises ConfigError if there is no bucket of this name; asks once for each bucket."""
    from mmjax.config.error import ConfigError

    scheme, _, rest = os.fspath(path).partition("://")
    bucket = rest.partition("/")[0]
    root = f"{scheme}://{bucket}"
    if root in _seen:
        return
    if not bucket:
        raise ConfigError(
            f"Path {os.fspath(path)!r}: names no bucket; write {scheme}://BUCKET/FOLDER."
        )
    try:
        with told(path):
            system(path).ls(root, max_results=1) if scheme == "gs" else system(path).ls(root)
    except FileNotFoundError as error:
        raise ConfigError(
            f"Path {os.fspath(path)!r}: there is no bucket {bucket!r}, or this account may not see"
            f" it; create it (gcloud storage buckets create {root}) or correct the name."
        ) from error
    _seen.add(root)


# --------------------------------------------------------------------------- listings


def listing(folder: Any) -> dict[str, Stat]:
    """All objects below a folder by their relative names, sorted; {} when there are none."""
    key, found = _asked(folder, lambda fs, key: fs.find(key, detail=True))
    below = {name: info for name, info in dict(found).items() if name.startswith(f"{key}/")}
    return {
        name[len(key) + 1 :]: _stat(info)
        for name, info in sorted(below.items())
        if info["type"] == "file" and not name.endswith("/")
    }


def _asked(folder: Any, question: Callable[[Any, str], Any]) -> tuple[str, Any]:
    """The key of a folder and what its service answers; nothing where no such folder is."""
    with told(folder):
        fs = system(folder)
        key = fs._strip_protocol(os.fspath(folder)).rstrip("/")
        try:
            found = question(fs, key)
        except FileNotFoundError:
            found = ()
    if not found:
        refuse_absent(folder)
    return key, found


def _stat(info: dict[str, Any]) -> Stat:
    marks = ("generation", "ETag", "etag", "LastModified", "mtime", "created")
    version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
    return Stat(int(info.get("size") or 0), version)


def names(folder: Any) -> dict[str, str]:
    """Names in a folder, each "file" or "folder", sorted; {} when there is no such folder."""
    key, found = _asked(folder, lambda fs, key: fs.ls(key, detail=True))
    kinds = {}
    for info in found:
        name = info["name"].rstrip("/")
        if name.startswith(f"{key}/"):
            kinds[name[len(key) + 1 :]] = "folder" if info["type"] == "directory" else "file"
    return dict(sorted(kinds.items()))


def kind(path: Any) -> str:
    """Whether a path is a "file" or a "folder". Raises FileNotFoundError."""
    return "folder" if _info(path)["type"] == "directory" else "file"


def stat(path: Any) -> Stat:
    """Size and version of an object. Raises FileNotFoundError."""
    return _stat(_info(path))


def _info(path: Any) -> dict[str, Any]:
    with told(path):
        try:
            return system(path).info(os.fspath(path).rstrip("/"))
        except FileNotFoundError:
            pass
    refuse_absent(path)
    raise FileNotFoundError(errno.ENOENT, "No such object or folder", os.fspath(path))


# ------------------------------------------------------------------------ reads, writes


def read(path: Any, most: int | None = None) -> bytes:
    """The bytes of an object, at most `most` of them. Raises FileNotFoundError."""
    try:
        with told(path):
            try:
                return system(path).cat_file(os.fspath(path), start=None, end=most)
            except Exception as error:
                if _status(error) != 416:  # a range of an empty object
                    raise
                return b""
    except FileNotFoundError:
        refuse_absent(path)
        raise


def chunks(path: Any) -> Iterator[bytes]:
    """The bytes of an object in pieces of CHUNK, one round trip each. Raises FileNotFoundError."""
    start = 0
    while True:
        with told(path):
            try:
                piece = system(path).cat_file(os.fspath(path), start=start, end=start + CHUNK)
            except Exception as error:
                if _status(error) != 416:  # it ends here
                    raise
                piece = b""
        yield piece
        start += len(piece)
        if len(piece) < CHUNK:
            return


def read_all(paths: list[Any]) -> dict[str, bytes]:
    """The bytes of several objects by path, several at a time; those that are gone are left out."""
    found = {}
    with _pool() as pool:
        for path, task in [(p, pool.submit(read, p)) for p in paths]:
            with contextlib.suppress(FileNotFoundError):
                found[os.fspath(path)] = task.result()
    return found


def write(path: Any, content: bytes) -> None:
    """Writes or replaces an object."""
    with told(path), _bucket_of(path):
        system(path).pipe_file(os.fspath(path), content)


def upload(source: Any, target: Any) -> None:
    """Writes a local file as an object."""
    with told(target), _bucket_of(target):
        system(target).put_file(os.fspath(source), os.fspath(target))


def download(source: Any, target: Any) -> None:
    """Writes an object to a local file. Raises FileNotFoundError."""
    with told(source):
        system(source).get_file(os.fspath(source), os.fspath(target))


@contextlib.contextmanager
def _bucket_of(path: Any) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        refuse_absent(path)
        raise


def _pool() -> Any:
    from concurrent.futures import ThreadPoolExecutor  # slow, and a path on a disk does without

    return ThreadPoolExecutor(PARALLEL)


def delete(paths: Iterable[Any]) -> None:
    """Deletes objects, as few requests as the service allows; those that are gone already too."""
    there = [os.fspath(path) for path in paths]
    if there:
        fs = system(there[0])
        with told(there[0]), contextlib.suppress(FileNotFoundError):
            keys = [fs._strip_protocol(path) for path in there]
            fs.rm_file(keys[0]) if len(keys) == 1 else fs.rm(keys)


def copy(source: Any, target: Any) -> None:
    """Copies a folder or an object within its service; nothing passes through this machine."""
    fs, pairs = system(source), [("", "")]
    inside = listing(source)
    if inside:
        pairs = [(f"/{name}", f"/{name}") for name in inside]
    with told(source), _pool() as pool:
        tasks = [
            pool.submit(fs.cp_file, f"{os.fspath(source)}{a}", f"{os.fspath(target)}{b}")
            for a, b in pairs
        ]
        for task in tasks:
            task.result()
