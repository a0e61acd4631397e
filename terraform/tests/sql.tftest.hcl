# The budget store on Cloud SQL: private, encrypted, backed up, and there only where it is asked for.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project_id = "acme-privacy"
  region     = "europe-west1"

  budget_store        = "sql"
  budget_sql_password = "not-a-real-password-1"
}

run "server" {
  command = plan

  assert {
    condition = (
      google_sql_database_instance.budget[0].encryption_key_name ==
      "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/sql"
    )
    error_message = "The server must be encrypted with its key."
  }

  assert {
    condition     = !google_sql_database_instance.budget[0].settings[0].ip_configuration[0].ipv4_enabled
    error_message = "The server must have no public address."
  }

  assert {
    condition     = length(google_sql_database_instance.budget[0].settings[0].ip_configuration[0].authorized_networks) == 0
    error_message = "The server must let in nobody from outside."
  }

  assert {
    condition     = google_sql_database_instance.budget[0].settings[0].ip_configuration[0].ssl_mode == "ENCRYPTED_ONLY"
    error_message = "The server must refuse connections without TLS."
  }

  assert {
    condition = (
      google_sql_database_instance.budget[0].deletion_protection &&
      google_sql_database_instance.budget[0].settings[0].deletion_protection_enabled
    )
    error_message = "The server must be protected from deletion, here and at the service."
  }

  assert {
    condition = (
      google_sql_database_instance.budget[0].settings[0].backup_configuration[0].enabled &&
      google_sql_database_instance.budget[0].settings[0].backup_configuration[0].point_in_time_recovery_enabled &&
      google_sql_database_instance.budget[0].settings[0].backup_configuration[0].location == "europe-west1" &&
      google_sql_database_instance.budget[0].settings[0].backup_configuration[0].backup_retention_settings[0].retained_backups == 30
    )
    error_message = "The server must be backed up in the region, every day for 30 days and for any moment of the last days."
  }

  assert {
    condition     = google_sql_database_instance.budget[0].settings[0].availability_type == "REGIONAL"
    error_message = "The server must survive the loss of a zone."
  }
}

run "sign_in" {
  command = plan

  assert {
    condition = (
      google_sql_user.budget[0].name == "beam_dp" && google_sql_database.budget[0].name == "budgets" &&
      google_sql_user.budget[0].password == null && google_sql_user.budget[0].password_wo_version == 1 &&
      google_secret_manager_secret_version.budget[0].secret_data == null
    )
    error_message = "The password must not be among what the state keeps."
  }

  assert {
    condition = (
      one(one(one(google_secret_manager_secret.budget[0].replication).user_managed).replicas).location == "europe-west1" &&
      one(one(one(one(google_secret_manager_secret.budget[0].replication).user_managed).replicas).customer_managed_encryption).kms_key_name ==
      "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/secret"
    )
    error_message = "The secret must stay in the region, encrypted with its key."
  }

  assert {
    condition = (
      google_secret_manager_secret_iam_member.worker[0].role == "roles/secretmanager.secretAccessor" &&
      google_secret_manager_secret_iam_member.worker[0].secret_id == google_secret_manager_secret.budget[0].secret_id &&
      google_secret_manager_secret_iam_member.worker[0].member == "serviceAccount:beam-dp-worker@acme-privacy.iam.gserviceaccount.com"
    )
    error_message = "The worker may read this secret."
  }
}

run "url" {
  command = plan

  variables {
    budget_sql = {
      user     = "ledger"
      database = "privacy"
    }
  }

  assert {
    condition = output.budget_store == join("", [
      "postgresql://ledger@budget.beam-dp.internal:5432/privacy?sslmode=require",
      "&password_secret=projects/acme-privacy/secrets/beam-dp-budget-password/versions/latest",
    ])
    error_message = "The URL must name user, host, database, TLS and the secret."
  }

  assert {
    condition = (
      google_dns_record_set.budget[0].name == "budget.beam-dp.internal." && google_dns_record_set.budget[0].type == "A" &&
      google_dns_managed_zone.budget[0].dns_name == "beam-dp.internal." &&
      google_dns_managed_zone.budget[0].visibility == "private" &&
      google_secret_manager_secret.budget[0].secret_id == "beam-dp-budget-password" &&
      google_sql_user.budget[0].name == "ledger" && google_sql_database.budget[0].name == "privacy"
    )
    error_message = "Host, secret, user and database of the URL must be those that are made."
  }

  assert {
    condition     = !contains(keys(google_storage_bucket.this), "budget")
    error_message = "Budgets must be kept in one place."
  }
}

run "absent" {
  command = plan

  variables {
    budget_store        = "bucket"
    budget_sql_password = null
  }

  assert {
    condition = 0 == sum([
      length(google_sql_database_instance.budget), length(google_sql_database.budget), length(google_sql_user.budget),
      length(google_secret_manager_secret.budget), length(google_secret_manager_secret_version.budget),
      length(google_secret_manager_secret_iam_member.worker), length(google_dns_managed_zone.budget),
      length(google_dns_record_set.budget),
    ])
    error_message = "Without budget_store = sql there must be no server, secret or zone."
  }

  assert {
    condition = length(setintersection(keys(google_project_service.this), [
      "sqladmin.googleapis.com", "secretmanager.googleapis.com", "servicenetworking.googleapis.com", "dns.googleapis.com",
    ])) == 0
    error_message = "Services that are not used must not be turned on."
  }
}
