# The example root, as a whole.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project_id          = "acme-privacy"
  billing_account     = "012345-6789AB-CDEF01"
  budget_sql_password = "not-a-real-password-1"
  emails              = ["privacy@acme.example"]
  launchers           = ["group:privacy@acme.example"]
}

run "first_apply" {
  command = plan

  module {
    source = "./examples/complete"
  }

  assert {
    condition     = output.buckets["input"] == "acme-privacy-beam-dp-input"
    error_message = "The example must make the buckets."
  }
}

run "launch" {
  command = plan

  module {
    source = "./examples/complete"
  }

  variables {
    launch = true
  }

  assert {
    condition     = startswith(output.budget_store, "postgresql://beam_dp@budget.beam-dp.internal:5432/budgets?")
    error_message = "The example must keep its budgets on Cloud SQL."
  }
}
