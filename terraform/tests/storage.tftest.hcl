# Buckets and the registry: nothing is public, everything is encrypted with a key of one's own.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project_id = "acme-privacy"
  region     = "europe-west1"
}

run "buckets" {
  command = plan

  assert {
    condition     = toset(keys(google_storage_bucket.this)) == toset(["input", "output", "staging", "templates", "index", "budget"])
    error_message = "There must be one bucket for each purpose."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : bucket.public_access_prevention == "enforced"])
    error_message = "No bucket may be made public."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : bucket.uniform_bucket_level_access])
    error_message = "Rights must be those of the bucket: no object may have a list of its own."
  }

  assert {
    condition = alltrue([
      for bucket in google_storage_bucket.this :
      bucket.encryption[0].default_kms_key_name ==
      "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/storage"
    ])
    error_message = "Every bucket must be encrypted with the key of the buckets."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : !bucket.force_destroy])
    error_message = "No bucket may be destroyed with data in it."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : bucket.location == "europe-west1"])
    error_message = "Data must stay in the region."
  }

  assert {
    condition     = google_storage_bucket.this["input"].name == "acme-privacy-beam-dp-input"
    error_message = "Buckets must be named PROJECT-NAME-PURPOSE."
  }
}

run "staging_is_emptied" {
  command = plan

  variables {
    staging_days = 3
  }

  assert {
    condition = one([
      for rule in google_storage_bucket.this["staging"].lifecycle_rule : one(rule.condition).age
      if one(rule.action).type == "Delete"
    ]) == 3
    error_message = "Staged files must be deleted after staging_days."
  }

  assert {
    condition = alltrue([
      for purpose in ["input", "output", "budget"] : alltrue([
        for rule in google_storage_bucket.this[purpose].lifecycle_rule : one(rule.action).type != "Delete"
      ])
    ])
    error_message = "Data, releases and budgets must not be deleted by age."
  }

  assert {
    condition = alltrue(flatten([
      for purpose in ["templates", "index"] : [
        for rule in google_storage_bucket.this[purpose].lifecycle_rule :
        one(rule.condition).with_state == "ARCHIVED" if one(rule.action).type == "Delete"
      ]
    ]))
    error_message = "Of templates and indexes only old versions may be deleted by age."
  }
}

run "what_is_kept" {
  command = plan

  assert {
    condition = toset([for purpose, bucket in google_storage_bucket.this : purpose if bucket.versioning[0].enabled]) == toset([
      "templates", "index", "budget"
    ])
    error_message = "Old versions must be kept of templates, indexes and budgets, and of no data of people."
  }

  assert {
    condition     = google_storage_bucket.this["budget"].soft_delete_policy[0].retention_duration_seconds == 90 * 86400
    error_message = "A budget that was deleted must come back for 90 days."
  }

  assert {
    condition     = google_storage_bucket.this["input"].soft_delete_policy[0].retention_duration_seconds == 0
    error_message = "Data that were deleted must be gone."
  }

  assert {
    condition     = google_storage_bucket.this["output"].soft_delete_policy[0].retention_duration_seconds == 30 * 86400
    error_message = "A release that was deleted must come back for 30 days."
  }
}

run "no_budget_bucket_without_need" {
  command = plan

  variables {
    budget_store = "none"
  }

  assert {
    condition     = !contains(keys(google_storage_bucket.this), "budget") && output.budget_store == null
    error_message = "There must be no bucket of budgets where budgets are not kept in one."
  }
}

run "bucket_prefix" {
  command = plan

  variables {
    bucket_prefix = "acme"
  }

  assert {
    condition     = google_storage_bucket.this["output"].name == "acme-output" && output.budget_store == "gs://acme-budget/budgets"
    error_message = "Buckets must be named after bucket_prefix."
  }
}

run "registry" {
  command = plan

  assert {
    condition = (
      google_artifact_registry_repository.this.kms_key_name ==
      "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/registry"
    )
    error_message = "Images must be encrypted with the key of the registry."
  }

  assert {
    condition     = google_artifact_registry_repository.this.docker_config[0].immutable_tags
    error_message = "A tag must not move to another image."
  }
}
