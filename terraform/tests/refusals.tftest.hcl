# Values that must be refused, each wrong in one way only, so that a rule that is missing shows.

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

run "refuses_project_id" {
  command = plan

  variables {
    project_id = "Acme"
  }

  expect_failures = [var.project_id]
}

run "refuses_region_zone" {
  command = plan

  variables {
    region = "europe-west1-b"
  }

  expect_failures = [var.region]
}

run "refuses_region_multi" {
  command = plan

  variables {
    region = "EU"
  }

  expect_failures = [var.region]
}

run "refuses_name_upper" {
  command = plan

  variables {
    name = "Beam_DP"
  }

  expect_failures = [var.name]
}

run "refuses_name_long" {
  command = plan

  variables {
    name = "a-name-of-more-than-20"
  }

  expect_failures = [var.name]
}

run "refuses_labels_key" {
  command = plan

  variables {
    labels = { Team = "privacy" }
  }

  expect_failures = [var.labels]
}

run "refuses_labels_value" {
  command = plan

  variables {
    labels = { team = "Data & Privacy" }
  }

  expect_failures = [var.labels]
}

run "refuses_bucket_prefix" {
  command = plan

  variables {
    bucket_prefix = "Acme."
  }

  expect_failures = [var.bucket_prefix]
}

run "refuses_staging_days_none" {
  command = plan

  variables {
    staging_days = 0
  }

  expect_failures = [var.staging_days]
}

run "refuses_staging_days_many" {
  command = plan

  variables {
    staging_days = 366
  }

  expect_failures = [var.staging_days]
}

run "refuses_staging_days_broken" {
  command = plan

  variables {
    staging_days = 1.5
  }

  expect_failures = [var.staging_days]
}

run "refuses_subnetwork_range_public" {
  command = plan

  variables {
    subnetwork_range = "8.8.8.0/24"
  }

  expect_failures = [var.subnetwork_range]
}

run "refuses_subnetwork_range_small" {
  command = plan

  variables {
    subnetwork_range = "10.64.0.0/29"
  }

  expect_failures = [var.subnetwork_range]
}

run "refuses_subnetwork_range_no_mask" {
  command = plan

  variables {
    subnetwork_range = "10.64.0.0"
  }

  expect_failures = [var.subnetwork_range]
}

run "refuses_subnetwork_range_octet" {
  command = plan

  variables {
    subnetwork_range = "10.64.300.0/24"
  }

  expect_failures = [var.subnetwork_range]
}

run "refuses_key_rotation_never" {
  command = plan

  variables {
    key_rotation_days = 0
  }

  expect_failures = [var.key_rotation_days]
}

run "refuses_key_rotation_rare" {
  command = plan

  variables {
    key_rotation_days = 366
  }

  expect_failures = [var.key_rotation_days]
}

run "refuses_key_rotation_broken" {
  command = plan

  variables {
    key_rotation_days = 1.5
  }

  expect_failures = [var.key_rotation_days]
}

run "refuses_key_protection_level" {
  command = plan

  variables {
    key_protection_level = "EXTERNAL"
  }

  expect_failures = [var.key_protection_level]
}

run "refuses_launchers_anyone" {
  command = plan

  variables {
    launchers = ["allUsers"]
  }

  expect_failures = [var.launchers]
}

run "refuses_launchers_any_account" {
  command = plan

  variables {
    launchers = ["allAuthenticatedUsers"]
  }

  expect_failures = [var.launchers]
}

run "refuses_launchers_wildcard" {
  command = plan

  variables {
    launchers = ["principalSet://*"]
  }

  expect_failures = [var.launchers]
}

run "refuses_image_untagged" {
  command = plan

  variables {
    image = "pipelines"
  }

  expect_failures = [var.image]
}

run "refuses_image_latest" {
  command = plan

  variables {
    image = "pipelines:latest"
  }

  expect_failures = [var.image]
}

run "refuses_budget_store" {
  command = plan

  variables {
    budget_store = "sqlite"
  }

  expect_failures = [var.budget_store]
}

run "refuses_budget_sql_version" {
  command = plan

  variables {
    budget_sql = { version = "MYSQL_8_0" }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_availability" {
  command = plan

  variables {
    budget_sql = { availability = "NONE" }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_user" {
  command = plan

  variables {
    budget_sql = { user = "a@b" }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_database" {
  command = plan

  variables {
    budget_sql = { database = "a/b" }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_password_version_none" {
  command = plan

  variables {
    budget_sql = { password_version = 0 }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_password_version_broken" {
  command = plan

  variables {
    budget_sql = { password_version = 1.5 }
  }

  expect_failures = [var.budget_sql]
}

run "refuses_budget_sql_password_none" {
  command = plan

  variables {
    budget_store = "sql"
  }

  expect_failures = [var.budget_sql_password]
}

run "refuses_budget_sql_password_short" {
  command = plan

  variables {
    budget_store        = "sql"
    budget_sql_password = "nineteen-characters"
  }

  expect_failures = [var.budget_sql_password]
}

run "refuses_billing_account" {
  command = plan

  variables {
    billing_alert = { billing_account = "acme", monthly_amount = 100 }
  }

  expect_failures = [var.billing_alert]
}

run "refuses_monthly_amount_none" {
  command = plan

  variables {
    billing_alert = { billing_account = "012345-6789AB-CDEF01", monthly_amount = 0 }
  }

  expect_failures = [var.billing_alert]
}

run "refuses_monthly_amount_broken" {
  command = plan

  variables {
    billing_alert = { billing_account = "012345-6789AB-CDEF01", monthly_amount = 99.5 }
  }

  expect_failures = [var.billing_alert]
}

run "refuses_thresholds_none" {
  command = plan

  variables {
    billing_alert = { billing_account = "012345-6789AB-CDEF01", monthly_amount = 100, thresholds = [] }
  }

  expect_failures = [var.billing_alert]
}

run "refuses_thresholds_zero" {
  command = plan

  variables {
    billing_alert = { billing_account = "012345-6789AB-CDEF01", monthly_amount = 100, thresholds = [0] }
  }

  expect_failures = [var.billing_alert]
}

run "refuses_emails" {
  command = plan

  variables {
    billing_alert = { billing_account = "012345-6789AB-CDEF01", monthly_amount = 100, emails = ["nobody"] }
  }

  expect_failures = [var.billing_alert]
}
