# Rights: each role by name, so that another one is noticed.

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

run "worker" {
  command = plan

  assert {
    condition = (
      google_project_iam_member.worker.role == "roles/dataflow.worker" &&
      google_project_iam_member.worker.member == "serviceAccount:beam-dp-worker@acme-privacy.iam.gserviceaccount.com"
    )
    error_message = "On the project the worker may be a worker of Dataflow and nothing else."
  }

  assert {
    condition = { for purpose, grant in google_storage_bucket_iam_member.worker : purpose => grant.role } == {
      input     = "roles/storage.objectViewer"
      output    = "roles/storage.objectUser"
      staging   = "roles/storage.objectUser"
      templates = "roles/storage.objectViewer"
      index     = "roles/storage.objectViewer"
      budget    = "roles/storage.objectUser"
    }
    error_message = "The worker may write output, staging and budgets, and read the rest."
  }

  assert {
    condition = alltrue([
      for purpose, grant in google_storage_bucket_iam_member.worker :
      grant.member == google_project_iam_member.worker.member && grant.bucket == "acme-privacy-beam-dp-${purpose}"
    ])
    error_message = "Rights on a bucket must be the worker's, on that bucket."
  }

  assert {
    condition = (
      google_artifact_registry_repository_iam_member.worker.role == "roles/artifactregistry.reader" &&
      google_artifact_registry_repository_iam_member.worker.member == google_project_iam_member.worker.member
    )
    error_message = "The worker may read images."
  }

  assert {
    condition     = google_service_account.worker.account_id == "beam-dp-worker" && google_service_account.launcher.account_id == "beam-dp-launcher"
    error_message = "The accounts that are made must be those that rights are granted to."
  }
}

run "launcher" {
  command = plan

  variables {
    launchers = ["group:privacy@acme.example"]
  }

  assert {
    condition = (
      google_project_iam_member.launcher.role == "roles/dataflow.developer" &&
      google_project_iam_member.launcher.member == "serviceAccount:beam-dp-launcher@acme-privacy.iam.gserviceaccount.com"
    )
    error_message = "On the project the launcher may start jobs and nothing else."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.launcher.role == "roles/storage.objectViewer" &&
      google_storage_bucket_iam_member.launcher.bucket == "acme-privacy-beam-dp-templates" &&
      google_storage_bucket_iam_member.launcher.member == google_project_iam_member.launcher.member
    )
    error_message = "The launcher may read templates, and no data."
  }

  assert {
    condition = (
      google_service_account_iam_member.launcher_as_worker.role == "roles/iam.serviceAccountUser" &&
      google_service_account_iam_member.launcher_as_worker.member == google_project_iam_member.launcher.member
    )
    error_message = "The launcher may hand a job the worker's account."
  }

  assert {
    condition = (
      keys(google_service_account_iam_member.launchers) == ["group:privacy@acme.example"] &&
      alltrue([for grant in google_service_account_iam_member.launchers : grant.role == "roles/iam.serviceAccountTokenCreator"])
    )
    error_message = "Those in launchers, and nobody else, may act as the launcher."
  }
}

run "nobody_launches_by_default" {
  command = plan

  assert {
    condition     = length(google_service_account_iam_member.launchers) == 0
    error_message = "By default nobody may act as the launcher."
  }
}
