"""Objects that are written only if nobody else has: preconditions of Google Cloud Storage.

Each write gives an object another generation. A write or a deletion may name the generation that
it expects, 0 for none; the service then compares and writes in one step.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from mmjax.files import bucket

__all__ = ["Changed", "Versioned", "supports"]

TIMEOUT = 10.0  # seconds for one request


class Changed(Exception):
    """The object has another generation than was expected."""


def supports(path: Any) -> bool:
    """Whether the service of a path heeds preconditions."""
    return os.fspath(path).startswith("gs://")


@functools.lru_cache(1)
def _client(endpoint: str | None) -> Any:
    del endpoint  # of tests: another one is another client
    try:
        from google.cloud import storage
    except ImportError as error:
        raise bucket.explained(error, "gs://") or error from error
    return storage.Client(project="mmjax")  # no call here depends on a project


class Versioned:
    """An object of gs:// and its generations.

    Every call raises StorageError where the service fails, after tries of about `patience` seconds.
    """

    def __init__(self, path: Any, patience: float = 60.0):
        self.path, self._patience = os.fspath(path), patience
        name, _, key = self.path.removeprefix("gs://").partition("/")
        with bucket.told(path):
            self._bucket = _client(os.environ.get("STORAGE_EMULATOR_HOST")).bucket(name)
        self._key = key

    def _again(self) -> dict[str, Any]:
        """A conditional request may be repeated: the second of two that arrive does nothing."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_timeout(self._patience) if self._patience else None
        return {"retry": retry, "timeout": min(TIMEOUT, self._patience or TIMEOUT)}

    def generation(self) -> int:
        """The generation of the object; 0 = there is none."""
        return self._found()[0]

    def _found(self) -> tuple[int, Any]:
        with bucket.told(self.path):
            blob = self._bucket.get_blob(self._key, **self._again())
        return (0, None) if blob is None else (int(blob.generation), blob)

    def read(self) -> tuple[bytes, int]:
        """Content and generation; (b"", 0) if there is no such object."""
        from google.api_core import exceptions

        while True:
            generation, blob = self._found()
            if blob is None:
                return b"", 0
            with (
                bucket.told(self.path),
                contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed),
            ):
                same = {"if_generation_match": generation}
                return blob.download_as_bytes(**same, **self._again()), generation

    def write(self, content: bytes, expected: int) -> int:
        """Writes if the generation is the expected one; returns the new generation.

        The content must be of this writer alone: it shows whether an answer was lost on the way
        and the write had happened.

        Raises:
          Changed: the object has another generation.
          ConfigError: there is no such bucket.
        """
        from google.api_core import exceptions

        blob = self._bucket.blob(self._key)
        try:
            with bucket.told(self.path):
                blob.upload_from_string(content, if_generation_match=expected, **self._again())
            return int(blob.generation)
        except exceptions.NotFound:
            bucket.refuse_absent(self.path)
            raise
        except exceptions.PreconditionFailed:
            found, generation = self.read()
            if found != content:
                raise Changed(self.path) from None
            return generation

    def delete(self, expected: int) -> None:
        """Deletes the object if its generation is the expected one; Changed otherwise."""
        from google.api_core import exceptions

        try:
            with bucket.told(self.path):
                self._bucket.blob(self._key).delete(if_generation_match=expected, **self._again())
        except (exceptions.PreconditionFailed, exceptions.NotFound):
            raise Changed(self.path) from None
