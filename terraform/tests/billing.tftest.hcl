# The billing alert and the services: there where they are asked for.

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

run "alert" {
  command = plan

  variables {
    billing_alert = {
      billing_account = "012345-6789AB-CDEF01"
      monthly_amount  = 250
      thresholds      = [0.5, 0.8]
      emails          = ["privacy@acme.example"]
    }
  }

  assert {
    condition = (
      google_billing_budget.this[0].billing_account == "012345-6789AB-CDEF01" &&
      google_billing_budget.this[0].amount[0].specified_amount[0].units == "250" &&
      google_billing_budget.this[0].budget_filter[0].projects == toset(["projects/123456789012"])
    )
    error_message = "The alert must be about the amount, of this project alone."
  }

  assert {
    condition = [
      for rule in google_billing_budget.this[0].threshold_rules :
      rule.threshold_percent if rule.spend_basis != "FORECASTED_SPEND"
    ] == [0.5, 0.8]
    error_message = "The alert must be given at each threshold."
  }

  assert {
    condition = anytrue([
      for rule in google_billing_budget.this[0].threshold_rules : rule.spend_basis == "FORECASTED_SPEND"
    ])
    error_message = "The alert must be given too when the amount is expected to be reached."
  }

  assert {
    condition = (
      google_monitoring_notification_channel.billing["privacy@acme.example"].type == "email" &&
      google_monitoring_notification_channel.billing["privacy@acme.example"].labels.email_address == "privacy@acme.example" &&
      length(google_billing_budget.this[0].all_updates_rule) == 1
    )
    error_message = "The alert must be sent to each address."
  }
}

run "no_alert" {
  command = plan

  assert {
    condition     = length(google_billing_budget.this) == 0 && length(google_monitoring_notification_channel.billing) == 0
    error_message = "Without billing_alert there must be none."
  }
}

run "services" {
  command = plan

  assert {
    condition = (
      contains(keys(google_project_service.this), "dataflow.googleapis.com") &&
      alltrue([for service in google_project_service.this : !service.disable_on_destroy])
    )
    error_message = "Services must be turned on, and never off."
  }
}

run "services_of_others" {
  command = plan

  variables {
    enable_services = false
  }

  assert {
    condition     = length(google_project_service.this) == 0
    error_message = "Services must be left alone where somebody else turns them on."
  }
}
