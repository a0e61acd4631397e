"""The budget store in objects, through Google's own client against a server over real sockets."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from google.cloud.storage import Client
from object_server import CLOCK_AHEAD
from refusals import refusal
from servers import free_port

from beam_dp.accounting.budget import gcs as gcs_module
from beam_dp.accounting.budget.gcs import ObjectLog
from beam_dp.errors import ArgumentError


@pytest.fixture
def log(object_url: str) -> ObjectLog:
    return ObjectLog(object_url)


def split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("gs://").partition("/")
    return bucket, prefix


def test_one_object_of_lines_for_each_data_set(log: ObjectLog, object_url: str) -> None:
    log.append("reviews", 0, '"first"')
    log.append("reviews", 1, '"zweite Ü"')
    bucket, prefix = split(object_url)
    blobs = list(Client().list_blobs(bucket, prefix=prefix))
    assert [blob.name for blob in blobs] == [f"{prefix}/reviews.jsonl"]
    assert blobs[0].download_as_bytes() == '"first"\n"zweite Ü"\n'.encode()
    # What a cache on the way kept would be read as the present state.
    assert blobs[0].cache_control == "no-store"


def test_other_objects_are_no_data_sets(log: ObjectLog, object_url: str) -> None:
    bucket, prefix = split(object_url)
    log.append("reviews", 0, "{}")
    others = [f"{prefix}/notes.txt", f"{prefix}/below/deep.jsonl", f"{prefix}beside.jsonl", "top.jsonl"]
    for name in others:
        Client().bucket(bucket).blob(name).upload_from_string("other\n")
    assert log.datasets() == ["reviews"]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_bucket_without_a_prefix(end: str, objects: None, tmp_path: Path) -> None:
    bucket = f"bucket{tmp_path.name.lower().replace('_', '-')}"
    log = ObjectLog(f"gs://{bucket}{end}")
    assert log.datasets() == []
    assert log.append("reviews", 0, "{}")
    assert log.datasets() == ["reviews"]
    assert [blob.name for blob in Client().list_blobs(bucket)] == ["reviews.jsonl"]


def test_reads_and_refused_appends_write_nothing(log: ObjectLog, object_url: str) -> None:
    bucket, prefix = split(object_url)
    assert log.read("reviews") == []
    assert log.datasets() == []
    assert not log.append("reviews", 1, "{}")
    assert list(Client().list_blobs(bucket, prefix=prefix)) == []
    log.append("reviews", 0, "{}")
    (before,) = Client().list_blobs(bucket, prefix=prefix)
    assert log.read("reviews") == ["{}"]
    assert not log.append("reviews", 0, "{}")
    assert not log.append("reviews", 2, "{}")
    (after,) = Client().list_blobs(bucket, prefix=prefix)
    assert after.generation == before.generation


def test_a_long_history_goes_in_parts(log: ObjectLog) -> None:
    # Above 8 MiB the client uploads in another way, by a session.
    lines = ['"' + "x" * 5_000_000 + '"', '"' + "ü" * 3_000_000 + '"', '"third"']
    assert [log.append("reviews", number, line) for number, line in enumerate(lines)] == [True, True, True]
    assert log.read("reviews") == lines


def test_a_writer_between_read_and_upload_wins(
    log: ObjectLog, object_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("reviews", 0, '"first"')
    other = ObjectLog(object_url)
    fetch = log._fetched

    def fetch_and_lose(*args: object) -> tuple[str, int]:
        found = fetch(*args)
        assert other.append("reviews", 1, '"other"')
        return found

    monkeypatch.setattr(log, "_fetched", fetch_and_lose)
    assert not log.append("reviews", 1, '"own"')
    assert other.read("reviews") == ['"first"', '"other"']


def test_a_lost_answer_is_no_second_record(objects: None, tmp_path: Path) -> None:
    # The server stores the upload and fails to say so; the client's repetition then meets its own record.
    log = ObjectLog(f"gs://forgetful/{tmp_path.name}")
    assert not log.append("reviews", 0, '"first"')
    assert log.read("reviews") == ['"first"']


@pytest.mark.parametrize("data", [b'"first"\n"cut', b'"\xff\xfe"\n', b""], ids=["cut", "binary", "empty"])
def test_a_damaged_object_is_refused(data: bytes, log: ObjectLog, object_url: str) -> None:
    bucket, prefix = split(object_url)
    Client().bucket(bucket).blob(f"{prefix}/reviews.jsonl").upload_from_string(data)
    refusal(lambda: log.read("reviews"), "cut", match="damaged: restore an earlier generation")
    refusal(lambda: log.append("reviews", 0, "{}"), match="damaged: restore an earlier generation")


@pytest.mark.parametrize(
    ("bucket", "match"),
    [
        ("missing", "there is no such bucket"),
        ("forbidden", "roles/storage.objectUser"),
        ("odd", "refused the request \\(HTTP 400\\)"),
        ("limited", "does not answer"),
        ("broken", "does not answer"),
    ],
)
def test_buckets_that_cannot_be_used(bucket: str, match: str, objects: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_module, "OPERATION_SECONDS", 0.3)
    log = ObjectLog(f"gs://{bucket}/budgets")
    for act in (log.datasets, lambda: log.read("reviews"), lambda: log.append("reviews", 0, "{}")):
        refusal(act, match=match)


def test_an_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(gcs_module, "OPERATION_SECONDS", 0.3)
    log = ObjectLog("gs://budgets/here")
    for act in (log.datasets, lambda: log.read("reviews"), lambda: log.append("reviews", 0, "{}")):
        refusal(act, match="Cloud Storage does not answer")


def test_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    refusal(ObjectLog("gs://budgets").datasets, "none.json", match="application default credentials")


@pytest.mark.parametrize(
    "url",
    [
        *("gs:", "gs://", "gs:///budgets", "s3://bucket/budgets", "gs://user:hunter2@bucket/budgets"),
        *("gs://bucket:80/b", "gs://bucket:x/b", "gs://bucket/b?hunter2=1", "gs://bucket/b#hunter2", "gs://[b/x"),
    ],
    ids=[f"url{number}" for number in range(10)],
)
def test_urls_that_can_never_be_right(url: str) -> None:
    refusal(lambda: ObjectLog(url), "hunter2", kind=ArgumentError, match="must be of the form gs://bucket/prefix")


def test_a_missing_package_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    refusal(lambda: ObjectLog("gs://bucket"), kind=ArgumentError, match="beam_dp\\[gcp\\]")


def test_the_time_is_that_of_the_server(object_url: str) -> None:
    ahead = ObjectLog(object_url).now() - datetime.now(timezone.utc)
    assert abs(ahead - timedelta(seconds=CLOCK_AHEAD)) < timedelta(seconds=60)
