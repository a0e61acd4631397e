locals {
  key_ring = "projects/${var.project_id}/locations/${var.region}/keyRings/${var.name}"

  # A key for each service, and Google's accounts that encrypt with it, none of which needs another's.
  key_users = merge(
    {
      storage  = ["gs-project-accounts"]
      registry = ["gcp-sa-artifactregistry"]
      # The job's state at the service, and the disks of its workers.
      dataflow = ["dataflow-service-producer-prod", "compute-system"]
    },
    local.sql ? { sql = ["gcp-sa-cloud-sql"], secret = ["gcp-sa-secretmanager"] } : {},
  )
  keys = { for key in keys(local.key_users) : key => "${local.key_ring}/cryptoKeys/${key}" }

  key_grants = merge([
    for key, agents in local.key_users : { for agent in agents : "${key}/${agent}" => { key = key, agent = agent } }
  ]...)

  identities = concat(
    ["artifactregistry.googleapis.com", "dataflow.googleapis.com"],
    local.sql ? ["secretmanager.googleapis.com", "sqladmin.googleapis.com"] : [],
  )
}

resource "google_kms_key_ring" "this" {
  project  = var.project_id
  name     = var.name
  location = var.region

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key" "this" {
  for_each = local.key_users

  name            = each.key
  key_ring        = local.key_ring
  purpose         = "ENCRYPT_DECRYPT"
  rotation_period = "${var.key_rotation_days * 86400}s"
  # How long a version that somebody destroyed can be restored.
  destroy_scheduled_duration = "2592000s"
  labels                     = var.labels

  version_template {
    algorithm        = "GOOGLE_SYMMETRIC_ENCRYPTION"
    protection_level = var.key_protection_level
  }

  # Without its key the history of the budgets is lost, and with it what was spent.
  lifecycle {
    prevent_destroy = true
  }

  depends_on = [google_kms_key_ring.this]
}

# Google makes these accounts at first use. A grant to one that does not exist yet is refused, so they are made here.
resource "google_project_service_identity" "this" {
  provider = google-beta
  for_each = toset(local.identities)

  project = var.project_id
  service = each.key

  depends_on = [google_project_service.this]
}

# Reading it makes the account.
data "google_storage_project_service_account" "this" {
  project = var.project_id

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key_iam_member" "this" {
  for_each = local.key_grants

  crypto_key_id = local.keys[each.value.key]
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member = format(
    "serviceAccount:service-%s@%s.iam.gserviceaccount.com", data.google_project.this.number, each.value.agent
  )

  depends_on = [
    google_kms_crypto_key.this,
    google_project_service_identity.this,
    data.google_storage_project_service_account.this,
  ]
}
