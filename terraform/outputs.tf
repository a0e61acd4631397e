output "buckets" {
  description = "Names of the buckets: input, output, staging, templates, index and, where it keeps budgets, budget."
  value       = { for purpose, bucket in google_storage_bucket.this : purpose => bucket.name }
}

output "registry" {
  description = "Where the image of the pipelines is pushed to: REGISTRY/IMAGE."
  value       = local.registry

  depends_on = [google_artifact_registry_repository.this]
}

output "image" {
  description = "The image that jobs run."
  value       = "${local.registry}/${var.image}"
}

output "worker" {
  description = "The account that launcher and workers run as: it needs rights on data that are elsewhere."
  value       = google_service_account.worker.email
}

output "launcher" {
  description = "The account that starts jobs."
  value       = google_service_account.launcher.email
}

output "budget_store" {
  description = "What --budget_store takes. Null where there is none."
  value       = local.budget_store_url
}

output "keys" {
  description = "The keys by what they encrypt."
  value       = local.keys

  depends_on = [google_kms_crypto_key.this]
}

output "jobs" {
  description = "The ids of the jobs in Dataflow."
  value       = { for name, job in google_dataflow_flex_template_job.this : name => job.job_id }
}

output "launch_flags" {
  description = "Flags with which 'gcloud dataflow flex-template run' launches a job here."
  value = join(" ", [
    "--project=${var.project_id}",
    "--region=${var.region}",
    "--impersonate-service-account=${local.launcher}",
    "--service-account-email=${local.worker}",
    "--subnetwork=${local.subnetwork}",
    "--disable-public-ips",
    "--dataflow-kms-key=${local.keys["dataflow"]}",
    "--staging-location=gs://${local.bucket_names["staging"]}/staging",
    "--temp-location=gs://${local.bucket_names["staging"]}/temp",
    "--parameters=sdk_container_image=${local.registry}/${var.image}",
  ])
}
