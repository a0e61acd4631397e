"""What holds for every resource that any test of the module plans, also for those that are added later."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from workspace import NEWEST, Outcome, Workspace

# Every role that the module grants, and on what.
ROLES = {
    "google_project_iam_member": {"roles/dataflow.worker", "roles/dataflow.developer"},
    "google_service_account_iam_member": {"roles/iam.serviceAccountUser", "roles/iam.serviceAccountTokenCreator"},
    "google_storage_bucket_iam_member": {"roles/storage.objectViewer", "roles/storage.objectUser"},
    "google_artifact_registry_repository_iam_member": {"roles/artifactregistry.reader"},
    "google_kms_crypto_key_iam_member": {"roles/cloudkms.cryptoKeyEncrypterDecrypter"},
    "google_secret_manager_secret_iam_member": {"roles/secretmanager.secretAccessor"},
}
_REPLICA = "replication.0.user_managed.0.replicas.0"
# Where the key stands of what keeps data.
KEYS = {
    "google_storage_bucket": "encryption.0.default_kms_key_name",
    "google_artifact_registry_repository": "kms_key_name",
    "google_dataflow_flex_template_job": "kms_key_name",
    "google_sql_database_instance": "encryption_key_name",
    "google_secret_manager_secret": f"{_REPLICA}.customer_managed_encryption.0.kms_key_name",
}
# What keeps no data, or keeps it in one of the above.
NO_DATA = {
    "google_billing_budget",
    "google_compute_firewall",
    "google_compute_global_address",
    "google_compute_network",
    "google_compute_subnetwork",
    "google_dns_managed_zone",
    "google_dns_record_set",
    "google_kms_crypto_key",
    "google_kms_key_ring",
    "google_monitoring_notification_channel",
    "google_project_service",
    "google_project_service_identity",
    "google_secret_manager_secret_version",
    "google_service_account",
    "google_service_networking_connection",
    "google_sql_database",
    "google_sql_user",
}
PASSWORD = "not-a-real-password-1"


class Resource(NamedTuple):
    type: str
    address: str
    values: dict[str, Any]


@pytest.fixture(scope="module")
def outcome(outcomes: Callable[[str], Outcome]) -> Outcome:
    return outcomes(NEWEST)


@pytest.fixture(scope="module")
def resources(outcome: Outcome) -> list[Resource]:
    """Every managed resource that any run plans."""
    planned = [item for plan in outcome.plans.values() for item in plan if item["mode"] == "managed"]
    return [Resource(item["type"], item["address"], item["change"]["after"]) for item in planned]


@pytest.fixture(scope="module")
def grants(resources: list[Resource]) -> list[Resource]:
    """Those that give somebody a role."""
    return [item for item in resources if "_iam_" in item.type]


def at(values: Any, path: str) -> Any:
    for step in path.split("."):
        values = values[int(step)] if step.isdigit() else values.get(step)
        if not values:
            return None
    return values


def test_every_type_is_known_to_keep_data_or_not(resources: list[Resource]) -> None:
    assert {item.type for item in resources} == {*KEYS, *NO_DATA, *ROLES}


def test_roles_are_those_that_are_listed(grants: list[Resource]) -> None:
    granted: dict[str, set[str]] = {}
    for item in grants:
        granted.setdefault(item.type, set()).add(item.values["role"])
    assert granted == ROLES


def test_no_role_is_wide(grants: list[Resource]) -> None:
    roles = {item.values["role"] for item in grants}
    assert roles
    assert not roles & {"roles/owner", "roles/editor", "roles/viewer"}
    assert not [role for role in roles if "admin" in role.lower()]


def test_nothing_is_granted_to_everybody(grants: list[Resource]) -> None:
    members = {item.values["member"] for item in grants}
    assert members
    assert not members & {"allUsers", "allAuthenticatedUsers"}


def test_all_that_keeps_data_is_encrypted_with_a_key_of_the_module(resources: list[Resource]) -> None:
    kept = [item for item in resources if item.type in KEYS]
    assert {item.type for item in kept} == set(KEYS)
    ring = "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/"
    for item in kept:
        assert str(at(item.values, KEYS[item.type])).startswith(ring), item.address


def test_no_bucket_can_be_made_public(resources: list[Resource]) -> None:
    buckets = [item.values for item in resources if item.type == "google_storage_bucket"]
    assert {bucket["public_access_prevention"] for bucket in buckets} == {"enforced"}
    assert {bucket["uniform_bucket_level_access"] for bucket in buckets} == {True}


def test_nothing_has_a_public_address(resources: list[Resource]) -> None:
    jobs = [item.values for item in resources if item.type == "google_dataflow_flex_template_job"]
    assert {job["ip_configuration"] for job in jobs} == {"WORKER_IP_PRIVATE"}
    servers = [item.values for item in resources if item.type == "google_sql_database_instance"]
    assert {at(server, "settings.0.ip_configuration.0")["ipv4_enabled"] for server in servers} == {False}
    ranges = [item.values for item in resources if item.type == "google_compute_global_address"]
    assert {addresses["address_type"] for addresses in ranges} == {"INTERNAL"}


def test_nobody_is_let_in_from_outside(resources: list[Resource]) -> None:
    doors = [item.values for item in resources if item.type == "google_compute_firewall"]
    inward = [door for door in doors if door["direction"] == "INGRESS"]
    assert inward
    assert all(door["source_tags"] and not door.get("source_ranges") for door in inward)


def test_password_is_in_no_plan(newest: Workspace, outcome: Outcome) -> None:
    assert PASSWORD in (newest.folder / "tests" / "sql.tftest.hcl").read_text()
    planned = {item["type"] for item in outcome.plans["sql/sign_in"]}
    assert {"google_sql_user", "google_secret_manager_secret_version"} <= planned
    assert PASSWORD not in json.dumps(outcome.plans)
