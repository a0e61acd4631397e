"""Every check of the module's own tests fails when what it checks is broken."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from workspace import MODULE, Workspace

VARIABLES = (MODULE / "variables.tf").read_text()
# A rule of a variable: the name of the variable and the text of the block.
RULES = [
    (name, rule)
    for name, body in re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', VARIABLES, re.MULTILINE | re.DOTALL)
    for rule in re.findall(r"^  validation \{\n.*?^  \}\n", body, re.MULTILINE | re.DOTALL)
]
REFUSALS = ("job_refusals", "refusals")


class Mutant(NamedTuple):
    """A defect that a check of a test file finds: the check whose message begins with ``found``."""

    test: str
    found: str
    file: str
    old: str
    new: str


_UNASKED = """{
    unasked = {
      pipeline = "aggregate", dataset = "a", run_id = "b", parameters = { output = "gs://a/b" }, num_workers = null,
      max_workers = 1, machine_type = null, container_spec_path = null
    }
  }"""
_FLOW_LOG = """  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.5
    metadata             = "INCLUDE_ALL_METADATA"
  }
"""

MUTANTS = (
    Mutant("billing", "The alert must be about", "billing.tf", '["projects/${data.google_project.this.number}"]', "[]"),
    Mutant("billing", "The alert must be given at", "billing.tf", "= threshold_rules.value\n", "= 1.0\n"),
    Mutant("billing", "The alert must be given too", "billing.tf", '"FORECASTED_SPEND"', '"CURRENT_SPEND"'),
    Mutant("billing", "The alert must be sent", "billing.tf", '"email"', '"sms"'),
    Mutant("billing", "Without billing_alert", "billing.tf", "[] : var.billing_alert.emails", '["a@b"] : []'),
    Mutant(
        "billing", "Services must be turned on", "project.tf", "disable_on_destroy = false", "disable_on_destroy = true"
    ),
    Mutant(
        "billing", "Services must be left", "project.tf", "var.enable_services ? local.services : []", "local.services"
    ),
    Mutant(
        "example", "The example must make", "examples/complete/outputs.tf", "module.beam_dp.buckets", "{ input = null }"
    ),
    Mutant("example", "The example must keep", "examples/complete/main.tf", '"sql"', '"bucket"'),
    Mutant("iam", "On the project the worker", "iam.tf", '"roles/dataflow.worker"', '"roles/editor"'),
    Mutant(
        "iam",
        "The worker may write",
        "storage.tf",
        'input = { role = "roles/storage.objectViewer"',
        'input = { role = "roles/storage.objectAdmin"',
    ),
    Mutant(
        "iam",
        "Rights on a bucket",
        "storage.tf",
        "bucket = google_storage_bucket.this[each.key].name",
        'bucket = google_storage_bucket.this["input"].name',
    ),
    Mutant("iam", "The worker may read images", "registry.tf", '"roles/artifactregistry.reader"', '"roles/viewer"'),
    Mutant("iam", "The accounts that are made", "iam.tf", '= "${var.name}-worker"', '= "${var.name}-runner"'),
    Mutant("iam", "On the project the launcher", "iam.tf", '"roles/dataflow.developer"', '"roles/dataflow.admin"'),
    Mutant(
        "iam",
        "The launcher may read",
        "storage.tf",
        'google_storage_bucket.this["templates"]',
        'google_storage_bucket.this["input"]',
    ),
    Mutant(
        "iam", "The launcher may hand", "iam.tf", '"roles/iam.serviceAccountUser"', '"roles/iam.serviceAccountAdmin"'
    ),
    Mutant("iam", "Those in launchers", "iam.tf", "for_each = var.launchers", "for_each = toset([])"),
    Mutant(
        "iam", "By default nobody", "iam.tf", "for_each = var.launchers", 'for_each = toset(["allAuthenticatedUsers"])'
    ),
    Mutant("jobs", "There must be a job", "jobs.tf", "${each.value.pipeline}.json", "${each.key}.json"),
    Mutant("jobs", "Jobs must be named", "jobs.tf", '"${var.name}-${each.key}"', "each.key"),
    Mutant("jobs", "Jobs must have", "jobs.tf", "= each.value.max_workers", "= each.value.num_workers"),
    Mutant("jobs", "Workers must have no", "jobs.tf", '"WORKER_IP_PRIVATE"', '"WORKER_IP_PUBLIC"'),
    Mutant("jobs", "Workers must be in", "jobs.tf", "= google_compute_network.this.name", '= "default"'),
    Mutant("jobs", "Jobs must be encrypted", "jobs.tf", 'local.keys["dataflow"]', "null"),
    Mutant("jobs", "Jobs must run as", "jobs.tf", "= local.worker\n", "= local.launcher\n"),
    Mutant(
        "jobs",
        "Jobs must stage",
        "jobs.tf",
        'local.bucket_names["staging"]}/temp',
        'local.bucket_names["output"]}/temp',
    ),
    Mutant("jobs", "Workers must run", "jobs.tf", '"${local.registry}/${var.image}"', "null"),
    Mutant("jobs", "A job must have its", "jobs.tf", "budget_store = local.budget_store_url", "budget_store = null"),
    Mutant(
        "jobs", "A job must have its", "jobs.tf", "pipeline     = each.value.pipeline", 'pipeline     = "aggregate"'
    ),
    Mutant(
        "jobs",
        "A stream must publish",
        "jobs.tf",
        'each.value.pipeline == "privatize_stream" ? "drain"',
        'false ? "drain"',
    ),
    Mutant("jobs", "Without entries", "jobs.tf", "for_each = var.jobs", f"for_each = merge(var.jobs, {_UNASKED})"),
    Mutant("kms", "There must be a key", "kms.tf", "local.sql ? { sql =", "true ? { sql ="),
    Mutant("kms", "Keys must rotate", "kms.tf", "${var.key_rotation_days * 86400}s", "${90 * 86400}s"),
    Mutant("kms", "A version that somebody", "kms.tf", '"2592000s"', '"86400s"'),
    Mutant("kms", "Keys must be kept", "kms.tf", "var.key_protection_level", '"SOFTWARE"'),
    Mutant("kms", "The names of the keys", "kms.tf", "/cryptoKeys/${key}", "/cryptoKeys/key-${key}"),
    Mutant("kms", "Keys must be in the ring", "kms.tf", "  location = var.region", '  location = "global"'),
    Mutant("kms", "Each key must be", "kms.tf", '"gcp-sa-cloud-sql"', '"gcp-sa-cloud-sql", "compute-system"'),
    Mutant(
        "kms",
        "Services may encrypt",
        "kms.tf",
        '"roles/cloudkms.cryptoKeyEncrypterDecrypter"',
        '"roles/cloudkms.admin"',
    ),
    Mutant("kms", "The accounts that keys", "kms.tf", '"secretmanager.googleapis.com", ', ""),
    Mutant(
        "network",
        "There must be no sub",
        "network.tf",
        "auto_create_subnetworks = false",
        "auto_create_subnetworks = true",
    ),
    Mutant(
        "network",
        "Workers must reach",
        "network.tf",
        "private_ip_google_access = true",
        "private_ip_google_access = false",
    ),
    Mutant("network", "Flows must be", "network.tf", _FLOW_LOG, ""),
    Mutant("network", "Only workers may", "network.tf", 'source_tags = ["dataflow"]', 'source_ranges = ["0.0.0.0/0"]'),
    Mutant("network", "The ports of", "network.tf", '["12345-12346"]', '["1-65535"]'),
    Mutant(
        "network", "Without Cloud SQL", "network.tf", "count = local.sql ? 1 : 0\n\n  project", "count = 1\n\n  project"
    ),
    Mutant("sql", "The server must be encrypted", "sql.tf", 'local.keys["sql"]', 'local.keys["storage"]'),
    Mutant("sql", "The server must have no", "sql.tf", "ipv4_enabled    = false", "ipv4_enabled    = true"),
    Mutant(
        "sql",
        "The server must let in",
        "sql.tf",
        '"ENCRYPTED_ONLY"\n',
        '"ENCRYPTED_ONLY"\n      authorized_networks {\n        value = "0.0.0.0/0"\n      }\n',
    ),
    Mutant("sql", "The server must refuse", "sql.tf", '"ENCRYPTED_ONLY"', '"ALLOW_UNENCRYPTED_AND_ENCRYPTED"'),
    Mutant(
        "sql",
        "The server must be protected",
        "sql.tf",
        "  deletion_protection = var.budget_sql.deletion_protection",
        "  deletion_protection = false",
    ),
    Mutant(
        "sql",
        "The server must be backed",
        "sql.tf",
        "point_in_time_recovery_enabled = true",
        "point_in_time_recovery_enabled = false",
    ),
    Mutant("sql", "The server must survive", "sql.tf", "= var.budget_sql.availability", '= "ZONAL"'),
    Mutant(
        "sql",
        "The password must not",
        "sql.tf",
        "secret_data_wo         = var.budget_sql_password",
        'secret_data = "kept"',
    ),
    Mutant("sql", "The secret must stay", "sql.tf", 'local.keys["secret"]', 'local.keys["sql"]'),
    Mutant(
        "sql",
        "The worker may read this",
        "sql.tf",
        '"roles/secretmanager.secretAccessor"',
        '"roles/secretmanager.admin"',
    ),
    Mutant("sql", "The URL must name", "sql.tf", "sslmode=require", "sslmode=disable"),
    Mutant("sql", "Host, secret, user", "sql.tf", '"${local.sql_host}."', '"sql.${local.sql_domain}."'),
    Mutant(
        "sql", "Budgets must be kept", "storage.tf", 'var.budget_store == "bucket" ?', 'var.budget_store != "none" ?'
    ),
    Mutant(
        "sql",
        "Without budget_store = sql",
        "sql.tf",
        'count = local.sql ? 1 : 0\n\n  project     = var.project_id\n  name        = "${var.name}-internal"',
        'count = 1\n\n  project     = var.project_id\n  name        = "${var.name}-internal"',
    ),
    Mutant("sql", "Services that are not", "project.tf", "    local.sql ? [\n", "    true ? [\n"),
    Mutant(
        "storage",
        "There must be one bucket",
        "storage.tf",
        'var.budget_store == "bucket" ?',
        'var.budget_store == "sql" ?',
    ),
    Mutant("storage", "No bucket may be made", "storage.tf", '"enforced"', '"inherited"'),
    Mutant(
        "storage",
        "Rights must be those",
        "storage.tf",
        "uniform_bucket_level_access = true",
        "uniform_bucket_level_access = false",
    ),
    Mutant("storage", "Every bucket must be", "storage.tf", 'local.keys["storage"]', 'local.keys["registry"]'),
    Mutant(
        "storage",
        "No bucket may be destroyed",
        "storage.tf",
        "force_destroy               = false",
        "force_destroy = true",
    ),
    Mutant("storage", "Data must stay", "storage.tf", "location                    = var.region", 'location = "US"'),
    Mutant(
        "storage", "Buckets must be named PROJECT", "storage.tf", '"${var.project_id}-${var.name}"', "var.project_id"
    ),
    Mutant("storage", "Staged files must", "storage.tf", "live_days = var.staging_days", "live_days = 30"),
    Mutant(
        "storage",
        "Data, releases and budgets",
        "storage.tf",
        'output = { role = "roles/storage.objectUser", live_days = null',
        'output = { role = "roles/storage.objectUser", live_days = 365',
    ),
    Mutant("storage", "Of templates and indexes", "storage.tf", '"ARCHIVED"', '"ANY"'),
    Mutant("storage", "Old versions must", "storage.tf", "each.value.version_days != 0", "true"),
    Mutant("storage", "A budget that was", "storage.tf", "undelete_days = 90", "undelete_days = 7"),
    Mutant(
        "storage",
        "Data that were deleted",
        "storage.tf",
        'objectViewer", live_days = null, version_days = 0, undelete_days = 0',
        'objectViewer", live_days = null, version_days = 0, undelete_days = 7',
    ),
    Mutant("storage", "A release that was", "storage.tf", "undelete_days = 30", "undelete_days = 7"),
    Mutant("storage", "There must be no bucket", "storage.tf", 'var.budget_store == "bucket" ?', "true ?"),
    Mutant("storage", "Buckets must be named after", "storage.tf", "coalesce(var.bucket_prefix, ", "coalesce("),
    Mutant("storage", "Images must be", "registry.tf", 'local.keys["registry"]', "null"),
    Mutant("storage", "A tag must not", "registry.tf", "immutable_tags = true", "immutable_tags = false"),
)


def name_of(words: str) -> str:
    return re.sub(r"\W+", "_", words).strip("_")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: name_of(f"{mutant.test} {mutant.found}"))
def test_defect_is_found(changeable: Workspace, mutant: Mutant) -> None:
    message = f'error_message = "{mutant.found}'
    assert changeable.keep_runs(mutant.test, containing=message) == 1
    changeable.replace(mutant.file, mutant.old, mutant.new)
    changeable.run("validate", check=True)
    outcome = changeable.test(mutant.test)
    said = "\n".join(outcome.messages)
    assert list(outcome.status.values()) == ["fail"], said
    assert f"\n{mutant.found}" in said


def test_every_check_has_a_defect_that_it_finds() -> None:
    checks = [
        (path.name.removesuffix(".tftest.hcl"), message)
        for path in (MODULE / "tests").glob("*.tftest.hcl")
        for message in re.findall(r'^ +error_message = "(.*)"$', path.read_text(), re.MULTILINE)
    ]
    assert checks
    unfound = [
        message
        for test, message in checks
        if not any(mutant.test == test and message.startswith(mutant.found) for mutant in MUTANTS)
    ]
    assert not unfound


@pytest.mark.parametrize(
    ("variable", "rule"), RULES, ids=[f"{name}_{number}" for number, (name, _) in enumerate(RULES)]
)
def test_rule_that_is_missing_is_noticed(changeable: Workspace, variable: str, rule: str) -> None:
    files = [file for file in REFUSALS if changeable.keep_runs(file, containing=f"= [var.{variable}]")]
    assert files
    changeable.replace("variables.tf", rule, "")
    changeable.run("validate", check=True)
    outcome = changeable.test(*files)
    assert outcome.returncode != 0
    assert any(status != "pass" for status in outcome.status.values())
