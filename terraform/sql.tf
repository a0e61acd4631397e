locals {
  sql_host   = "budget.${local.sql_domain}"
  sql_domain = "${var.name}.internal"
  secret_id  = "${var.name}-budget-password"

  budget_store_url = {
    none   = null
    bucket = "gs://${local.bucket_prefix}-budget/budgets"
    sql = format(
      "postgresql://%s@%s:5432/%s?sslmode=require&password_secret=projects/%s/secrets/%s/versions/latest",
      var.budget_sql.user, local.sql_host, var.budget_sql.database, var.project_id, local.secret_id,
    )
  }[var.budget_store]
}

resource "google_sql_database_instance" "budget" {
  count = local.sql ? 1 : 0

  project             = var.project_id
  name                = "${var.name}-budget"
  region              = var.region
  database_version    = var.budget_sql.version
  encryption_key_name = local.keys["sql"]
  # Against terraform destroy; the setting below also against the console and the API.
  deletion_protection = var.budget_sql.deletion_protection

  settings {
    edition                     = "ENTERPRISE"
    tier                        = var.budget_sql.tier
    availability_type           = var.budget_sql.availability
    deletion_protection_enabled = var.budget_sql.deletion_protection
    disk_autoresize             = true
    user_labels                 = var.labels

    ip_configuration {
      ipv4_enabled    = false
      private_network = google_compute_network.this.id
      ssl_mode        = "ENCRYPTED_ONLY"
    }

    backup_configuration {
      enabled                        = true
      location                       = var.region
      point_in_time_recovery_enabled = true
      transaction_log_retention_days = 7

      backup_retention_settings {
        retained_backups = 30
        retention_unit   = "COUNT"
      }
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.this, google_service_networking_connection.services]
}

resource "google_sql_database" "budget" {
  count = local.sql ? 1 : 0

  project  = var.project_id
  name     = var.budget_sql.database
  instance = google_sql_database_instance.budget[0].name
}

# Write-only arguments reach the service and neither the plan nor the state.
resource "google_sql_user" "budget" {
  count = local.sql ? 1 : 0

  project             = var.project_id
  name                = var.budget_sql.user
  instance            = google_sql_database_instance.budget[0].name
  password_wo         = var.budget_sql_password
  password_wo_version = var.budget_sql.password_version
}

resource "google_secret_manager_secret" "budget" {
  count = local.sql ? 1 : 0

  project   = var.project_id
  secret_id = local.secret_id
  labels    = var.labels

  replication {
    user_managed {
      replicas {
        location = var.region

        customer_managed_encryption {
          kms_key_name = local.keys["secret"]
        }
      }
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.this]
}

resource "google_secret_manager_secret_version" "budget" {
  count = local.sql ? 1 : 0

  secret                 = google_secret_manager_secret.budget[0].id
  secret_data_wo         = var.budget_sql_password
  secret_data_wo_version = var.budget_sql.password_version
}

resource "google_secret_manager_secret_iam_member" "worker" {
  count = local.sql ? 1 : 0

  project   = var.project_id
  secret_id = google_secret_manager_secret.budget[0].secret_id
  # Launcher and workers sign in to the budget store; this is the one secret that they may read.
  role   = "roles/secretmanager.secretAccessor"
  member = "serviceAccount:${local.worker}"

  depends_on = [google_service_account.worker]
}

# A name of its own, so that the store keeps its URL when a backup is restored to another instance.
resource "google_dns_managed_zone" "budget" {
  count = local.sql ? 1 : 0

  project     = var.project_id
  name        = "${var.name}-internal"
  dns_name    = "${local.sql_domain}."
  description = "The budget store, as the workers see it"
  visibility  = "private"
  labels      = var.labels

  private_visibility_config {
    networks {
      network_url = google_compute_network.this.id
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_dns_record_set" "budget" {
  count = local.sql ? 1 : 0

  project      = var.project_id
  managed_zone = google_dns_managed_zone.budget[0].name
  name         = "${local.sql_host}."
  type         = "A"
  ttl          = 60
  rrdatas      = [google_sql_database_instance.budget[0].private_ip_address]
}
