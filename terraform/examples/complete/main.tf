# Everything: the budget store on Cloud SQL, a billing alert, and a job of each pipeline.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 9.0"
    }
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.50, < 9.0"
    }
  }
}

# The budget of the billing account is asked for in the name of this project.
provider "google" {
  project               = var.project_id
  region                = var.region
  billing_project       = var.project_id
  user_project_override = true
}

provider "google-beta" {
  project = var.project_id
  region  = var.region
}

module "beam_dp" {
  source = "../.."

  project_id = var.project_id
  region     = var.region
  launchers  = var.launchers

  budget_store        = "sql"
  budget_sql_password = var.budget_sql_password

  billing_alert = {
    billing_account = var.billing_account
    monthly_amount  = 500
    emails          = var.emails
  }

  jobs = { for name, job in local.jobs : name => job if var.launch }
}
