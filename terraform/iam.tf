# Here are the accounts and their rights on the project; rights on a bucket, repository, key or secret stand beside it.

resource "google_service_account" "worker" {
  project      = var.project_id
  account_id   = "${var.name}-worker"
  display_name = "beam_dp: runs the launcher and the workers of the pipelines"

  depends_on = [google_project_service.this]
}

resource "google_service_account" "launcher" {
  project      = var.project_id
  account_id   = "${var.name}-launcher"
  display_name = "beam_dp: starts jobs from the templates; reads no data"

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "worker" {
  project = var.project_id
  # To lease work, shuffle, log and report metrics. It holds storage.objects.get and .create too, on every bucket of the
  # project: a reason to give beam_dp a project of its own.
  role   = "roles/dataflow.worker"
  member = "serviceAccount:${local.worker}"

  depends_on = [google_service_account.worker]
}

resource "google_project_iam_member" "launcher" {
  project = var.project_id
  # To create, watch and cancel jobs.
  role   = "roles/dataflow.developer"
  member = "serviceAccount:${local.launcher}"

  depends_on = [google_service_account.launcher]
}

resource "google_service_account_iam_member" "launcher_as_worker" {
  service_account_id = google_service_account.worker.name
  # A job is handed the worker's account, and only who may act as it may do that.
  role   = "roles/iam.serviceAccountUser"
  member = "serviceAccount:${local.launcher}"

  depends_on = [google_service_account.launcher]
}

resource "google_service_account_iam_member" "launchers" {
  for_each = var.launchers

  service_account_id = google_service_account.launcher.name
  # People and schedulers start jobs as the launcher, with tokens of an hour and no key files.
  role   = "roles/iam.serviceAccountTokenCreator"
  member = each.key
}
