# To Terraform a job that has ended is gone, and the next apply launches it again. That spends nothing: the budget store
# refuses a run id that it has seen. Take the entry out of var.jobs when its job is done.
resource "google_dataflow_flex_template_job" "this" {
  provider = google-beta
  for_each = var.jobs

  project = var.project_id
  region  = var.region
  name    = "${var.name}-${each.key}"
  container_spec_gcs_path = coalesce(
    each.value.container_spec_path, "gs://${local.bucket_names["templates"]}/${each.value.pipeline}.json"
  )
  parameters = merge(each.value.parameters, {
    pipeline     = each.value.pipeline
    budget_store = local.budget_store_url
    dataset      = each.value.dataset
    run_id       = each.value.run_id
  })
  labels = merge(var.labels, { pipeline = each.value.pipeline })

  service_account_email = local.worker
  ip_configuration      = "WORKER_IP_PRIVATE"
  network               = google_compute_network.this.name
  subnetwork            = local.subnetwork
  kms_key_name          = local.keys["dataflow"]
  sdk_container_image   = "${local.registry}/${var.image}"
  staging_location      = "gs://${local.bucket_names["staging"]}/staging"
  temp_location         = "gs://${local.bucket_names["staging"]}/temp"
  machine_type          = each.value.machine_type
  num_workers           = each.value.num_workers
  max_workers           = each.value.max_workers
  # A stream publishes what it has read before it ends; a batch that is stopped has published nothing.
  on_delete = each.value.pipeline == "privatize_stream" ? "drain" : "cancel"

  depends_on = [
    google_artifact_registry_repository_iam_member.worker,
    google_compute_firewall.workers,
    google_compute_subnetwork.this,
    google_dns_record_set.budget,
    google_kms_crypto_key_iam_member.this,
    google_project_iam_member.worker,
    google_secret_manager_secret_iam_member.worker,
    google_secret_manager_secret_version.budget,
    google_sql_database.budget,
    google_sql_user.budget,
    google_storage_bucket_iam_member.worker,
  ]
}
