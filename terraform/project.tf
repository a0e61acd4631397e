data "google_project" "this" {
  project_id = var.project_id
}

locals {
  # Names are put together here and not read from the resources, so that a plan shows them in full. What uses one
  # depends on the resource by depends_on.
  sql        = var.budget_store == "sql"
  worker     = "${var.name}-worker@${var.project_id}.iam.gserviceaccount.com"
  launcher   = "${var.name}-launcher@${var.project_id}.iam.gserviceaccount.com"
  subnetwork = "regions/${var.region}/subnetworks/${var.name}"
  registry   = "${var.region}-docker.pkg.dev/${var.project_id}/${var.name}"

  services = concat(
    [
      "artifactregistry.googleapis.com",
      "cloudkms.googleapis.com",
      "compute.googleapis.com",
      "dataflow.googleapis.com",
      "iam.googleapis.com",
      "logging.googleapis.com",
      "monitoring.googleapis.com",
      "storage.googleapis.com",
    ],
    local.sql ? [
      "dns.googleapis.com",
      "secretmanager.googleapis.com",
      "servicenetworking.googleapis.com",
      "sqladmin.googleapis.com",
    ] : [],
    var.billing_alert == null ? [] : ["billingbudgets.googleapis.com"],
  )
}

resource "google_project_service" "this" {
  for_each = toset(var.enable_services ? local.services : [])

  project = var.project_id
  service = each.key
  # Others in the project may use them too.
  disable_on_destroy = false
}
