resource "google_artifact_registry_repository" "this" {
  project       = var.project_id
  location      = var.region
  repository_id = var.name
  description   = "Images of beam_dp's pipelines: launcher and worker in one"
  format        = "DOCKER"
  kms_key_name  = local.keys["registry"]
  labels        = var.labels

  # What a ledger says was run must stay what its tag names.
  docker_config {
    immutable_tags = true
  }

  depends_on = [google_kms_crypto_key_iam_member.this]
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  project    = var.project_id
  location   = var.region
  repository = google_artifact_registry_repository.this.repository_id
  # Launcher and workers pull the image.
  role   = "roles/artifactregistry.reader"
  member = "serviceAccount:${local.worker}"

  depends_on = [google_service_account.worker]
}
