"""The budget store's records in Cloud Storage: one object of JSON lines for each data set.

An object cannot be appended to; it is replaced whole, on the condition that its generation is still the one that was
read. Of two writers the server lets one through, so an append is a compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from beam_dp.errors import ArgumentError, BudgetStoreError

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

REQUEST_SECONDS = 10.0
# For one operation with its repetitions.
OPERATION_SECONDS = 20.0
_SUFFIX = ".jsonl"


class ObjectLog:
    """Records in ``gs://bucket/prefix``: the object ``prefix/DATASET.jsonl`` for each data set.

    Credentials are the application default ones; with ``STORAGE_EMULATOR_HOST`` there are none. The account needs
    roles/storage.objectUser on the bucket. Cloud Storage has no right to append alone: turn object versioning on, so
    that every append leaves the former text as a generation that can be compared and restored. It takes about one
    append a second for each data set.

    An instance holds no connection: it may be shared by threads, forked and pickled.

    Raises:
        ArgumentError: the URL is not of this form, or google-cloud-storage is not installed.
        BudgetStoreError: as `beam_dp.accounting.budget.log.RecordLog` says.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ArgumentError("budget_store must be of the form gs://bucket/prefix") from None
        if parts.scheme != "gs" or not parts.netloc or "@" in parts.netloc or port or parts.query or parts.fragment:
            raise ArgumentError("budget_store must be of the form gs://bucket/prefix, with no user, port or query")
        try:
            import google.cloud.storage  # noqa: F401, PLC0415 - an optional package
        except ImportError:
            raise ArgumentError("budget_store gs:// needs google-cloud-storage: pip install 'beam_dp[gcp]'") from None
        self._bucket_name = parts.netloc
        self._folder = f"{parts.path.strip('/')}/".lstrip("/")
        self._shown = f"gs://{self._bucket_name}/{self._folder}".rstrip("/")

    def __repr__(self) -> str:
        return f"ObjectLog({self._shown!r})"

    def datasets(self) -> list[str]:
        """The names of the data sets that have records, sorted."""
        with self._bucket() as bucket:
            names = [str(blob.name) for blob in self._listed(bucket)]
        return sorted(name[len(self._folder) : -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX))

    def read(self, dataset: str) -> list[str]:
        """The lines of a data set in order, of one moment; empty if there is no such data set."""
        with self._bucket() as bucket:
            text, _ = self._fetched(bucket, dataset)
        return text.split("\n")[:-1]

    def append(self, dataset: str, sequence: int, line: str) -> bool:
        """Writes ``line`` as record number ``sequence``; False if there is one already or the one before is missing."""
        from google.api_core.exceptions import Conflict, PreconditionFailed  # noqa: PLC0415 - an optional package

        with self._bucket() as bucket:
            text, generation = self._fetched(bucket, dataset)
            if text.count("\n") != sequence:
                return False
            blob = self._blob(bucket, dataset)
            # A copy in a cache on the way would be read as the present state.
            blob.cache_control = "no-store"
            try:
                blob.upload_from_string(
                    f"{text}{line}\n".encode(),
                    content_type="application/x-ndjson",
                    if_generation_match=generation,
                    **_limits(),
                )
            except (PreconditionFailed, Conflict):
                return False
            return True

    def now(self) -> datetime:
        """The time in UTC by the clock of Cloud Storage, to the second: launchers' clocks differ, and can be set."""
        with self._bucket() as bucket:
            dates: list[str] = []
            bucket.client._http.hooks["response"].append(lambda response, **_: dates.append(response.headers["Date"]))
            self._listed(bucket, limit=1)
        return parsedate_to_datetime(dates[-1]).astimezone(timezone.utc)

    def _blob(self, bucket: Bucket, dataset: str) -> Blob:
        return bucket.blob(f"{self._folder}{dataset}{_SUFFIX}")

    def _listed(self, bucket: Bucket, limit: int | None = None) -> list[Blob]:
        return list(bucket.list_blobs(prefix=self._folder, delimiter="/", max_results=limit, **_limits()))

    def _fetched(self, bucket: Bucket, dataset: str) -> tuple[str, int]:
        """The text of a data set's object and its generation; an empty text and 0 where there is none."""
        from google.api_core.exceptions import NotFound  # noqa: PLC0415 - an optional package

        blob = self._blob(bucket, dataset)
        try:
            text = blob.download_as_bytes(**_limits()).decode()
        except NotFound:
            # No object, or no bucket: the list of a bucket that is not there is an error.
            self._listed(bucket, limit=1)
            return "", 0
        except UnicodeDecodeError:
            text = ""
        if not text.endswith("\n"):
            raise self._error("an object in it is damaged: restore an earlier generation of it")
        return text, int(blob.generation)

    @contextmanager
    def _bucket(self) -> Iterator[Bucket]:
        """The bucket; failures inside the block become one line that says what would be right."""
        from google.api_core import exceptions  # noqa: PLC0415 - an optional package, as all below
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from google.cloud.storage import Client  # noqa: PLC0415
        from google.resumable_media import DataCorruption, InvalidResponse  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        broken = (DataCorruption, InvalidResponse, RequestException)
        try:
            # No project: buckets have names of their own, and the credentials may belong to none.
            with closing(Client(project=None)) as client:
                yield client.bucket(self._bucket_name)
        except (exceptions.TooManyRequests, exceptions.ServerError, exceptions.RetryError, *broken):
            raise self._error("Cloud Storage does not answer: check the network, then try again") from None
        except exceptions.NotFound:
            raise self._error("there is no such bucket: make it first") from None
        except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError):
            raise self._error(
                "this account may not use it: it needs application default credentials with "
                "roles/storage.objectUser on the bucket"
            ) from None
        except exceptions.GoogleAPICallError as error:
            raise self._error(f"Cloud Storage refused the request (HTTP {error.code})") from None

    def _error(self, reason: str) -> BudgetStoreError:
        return BudgetStoreError(f"budget store {self._shown}: {reason}")


def _limits() -> dict[str, Any]:
    """How long a request may take and how long it is repeated: appends too, since their condition is in them."""
    from google.cloud.storage.retry import DEFAULT_RETRY  # noqa: PLC0415 - an optional package

    return {"timeout": REQUEST_SECONDS, "retry": DEFAULT_RETRY.with_timeout(OPERATION_SECONDS)}
