# Keys: they rotate, cannot be lost by accident, and each serves one of Google's services.

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

run "keys" {
  command = plan

  variables {
    key_rotation_days    = 30
    key_protection_level = "HSM"
  }

  assert {
    condition     = toset(keys(google_kms_crypto_key.this)) == toset(["storage", "registry", "dataflow"])
    error_message = "There must be a key for each service that is used."
  }

  assert {
    condition     = alltrue([for key in google_kms_crypto_key.this : key.rotation_period == "2592000s"])
    error_message = "Keys must rotate after key_rotation_days."
  }

  assert {
    condition     = alltrue([for key in google_kms_crypto_key.this : key.destroy_scheduled_duration == "2592000s"])
    error_message = "A version that somebody destroyed must come back for 30 days."
  }

  assert {
    condition     = alltrue([for key in google_kms_crypto_key.this : key.version_template[0].protection_level == "HSM"])
    error_message = "Keys must be kept at key_protection_level."
  }

  assert {
    condition     = alltrue([for name, key in google_kms_crypto_key.this : output.keys[name] == "${key.key_ring}/cryptoKeys/${key.name}"])
    error_message = "The names of the keys that are used must be those of the keys that are made."
  }

  assert {
    condition = (
      google_kms_key_ring.this.location == "europe-west1" &&
      google_kms_crypto_key.this["storage"].key_ring == "projects/acme-privacy/locations/europe-west1/keyRings/${google_kms_key_ring.this.name}"
    )
    error_message = "Keys must be in the ring and the region of the data."
  }
}

run "grants" {
  command = plan

  variables {
    budget_store        = "sql"
    budget_sql_password = "not-a-real-password-1"
  }

  assert {
    condition = toset([
      for grant in google_kms_crypto_key_iam_member.this : "${basename(grant.crypto_key_id)} ${grant.member}"
      ]) == toset([
      "storage serviceAccount:service-123456789012@gs-project-accounts.iam.gserviceaccount.com",
      "registry serviceAccount:service-123456789012@gcp-sa-artifactregistry.iam.gserviceaccount.com",
      "dataflow serviceAccount:service-123456789012@dataflow-service-producer-prod.iam.gserviceaccount.com",
      "dataflow serviceAccount:service-123456789012@compute-system.iam.gserviceaccount.com",
      "sql serviceAccount:service-123456789012@gcp-sa-cloud-sql.iam.gserviceaccount.com",
      "secret serviceAccount:service-123456789012@gcp-sa-secretmanager.iam.gserviceaccount.com",
    ])
    error_message = "Each key must be granted to the accounts of its service and to nobody else."
  }

  assert {
    condition = alltrue([
      for grant in google_kms_crypto_key_iam_member.this : grant.role == "roles/cloudkms.cryptoKeyEncrypterDecrypter"
    ])
    error_message = "Services may encrypt and decrypt, and do nothing else to keys."
  }

  assert {
    condition = toset(keys(google_project_service_identity.this)) == toset([
      "artifactregistry.googleapis.com", "dataflow.googleapis.com", "secretmanager.googleapis.com", "sqladmin.googleapis.com",
    ])
    error_message = "The accounts that keys are granted to must be made first."
  }
}
