# Network: private addresses, Google's services alone, and workers that reach each other.

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

run "network" {
  command = plan

  variables {
    subnetwork_range = "192.168.16.0/22"
  }

  assert {
    condition     = !google_compute_network.this.auto_create_subnetworks
    error_message = "There must be no subnetworks but that of the workers."
  }

  assert {
    condition = (
      google_compute_subnetwork.this.private_ip_google_access &&
      google_compute_subnetwork.this.ip_cidr_range == "192.168.16.0/22" &&
      google_compute_subnetwork.this.region == "europe-west1"
    )
    error_message = "Workers must reach Google's services from private addresses of subnetwork_range."
  }

  assert {
    condition     = length(google_compute_subnetwork.this.log_config) == 1
    error_message = "Flows must be logged."
  }

  assert {
    condition = (
      google_compute_firewall.workers.direction == "INGRESS" &&
      google_compute_firewall.workers.source_tags == toset(["dataflow"]) &&
      google_compute_firewall.workers.target_tags == toset(["dataflow"]) &&
      length(coalesce(google_compute_firewall.workers.source_ranges, [])) == 0
    )
    error_message = "Only workers may be let in, and only to workers."
  }

  assert {
    condition = (
      one(google_compute_firewall.workers.allow).protocol == "tcp" &&
      one(google_compute_firewall.workers.allow).ports == tolist(["12345-12346"])
    )
    error_message = "The ports of the shuffle must be open, and no others."
  }

  assert {
    condition     = length(google_compute_global_address.services) == 0 && length(google_service_networking_connection.services) == 0
    error_message = "Without Cloud SQL there must be no peering."
  }
}
