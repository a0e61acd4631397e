locals {
  billing_emails = toset(var.billing_alert == null ? [] : var.billing_alert.emails)
}

resource "google_monitoring_notification_channel" "billing" {
  for_each = local.billing_emails

  project      = var.project_id
  display_name = "${var.name}: costs"
  type         = "email"
  labels       = { email_address = each.key }

  depends_on = [google_project_service.this]
}

# It tells, and stops nothing.
resource "google_billing_budget" "this" {
  count = var.billing_alert == null ? 0 : 1

  billing_account = var.billing_alert.billing_account
  display_name    = "${var.name} in ${var.project_id}"

  budget_filter {
    projects        = ["projects/${data.google_project.this.number}"]
    calendar_period = "MONTH"
  }

  amount {
    specified_amount {
      currency_code = var.billing_alert.currency
      units         = tostring(var.billing_alert.monthly_amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = var.billing_alert.thresholds
    content {
      threshold_percent = threshold_rules.value
    }
  }

  # Before the money is gone: the month as it is expected to end.
  threshold_rules {
    threshold_percent = 1.0
    spend_basis       = "FORECASTED_SPEND"
  }

  dynamic "all_updates_rule" {
    for_each = length(local.billing_emails) == 0 ? [] : [1]
    content {
      monitoring_notification_channels = [for channel in google_monitoring_notification_channel.billing : channel.id]
    }
  }

  depends_on = [google_project_service.this]
}
