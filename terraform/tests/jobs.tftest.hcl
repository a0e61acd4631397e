# Jobs: one for each entry, in the private network, with key, account and budget.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project_id = "acme-privacy"
  region     = "europe-west1"

  jobs = {
    tickets = {
      pipeline   = "privatize_text"
      dataset    = "tickets"
      run_id     = "2024-05-17"
      parameters = { input = "gs://in/tickets-*.jsonl", output = "gs://out/tickets", epsilon = "8" }
    }
    items = {
      pipeline            = "aggregate"
      dataset             = "events"
      run_id              = "2024-05-17"
      parameters          = { input = "gs://in/events-*.csv", output = "gs://out/items" }
      container_spec_path = "gs://elsewhere/aggregate-v2.json"
      machine_type        = "n2-standard-8"
      num_workers         = 2
      max_workers         = 40
    }
    words = {
      pipeline   = "private_vocabulary"
      dataset    = "tickets"
      run_id     = "2024-05-18"
      parameters = { input = "gs://in/tickets-*.jsonl", output = "gs://out/words" }
    }
    stream = {
      pipeline = "privatize_stream"
      dataset  = "tickets"
      run_id   = "2024-05-19"
      parameters = {
        input_subscription = "projects/acme-in/subscriptions/tickets"
        output_topic       = "projects/acme-out/topics/tickets"
      }
    }
  }
}

run "one_for_each_entry" {
  command = plan

  assert {
    condition = { for key, job in google_dataflow_flex_template_job.this : key => job.container_spec_gcs_path } == {
      tickets = "gs://acme-privacy-beam-dp-templates/privatize_text.json"
      items   = "gs://elsewhere/aggregate-v2.json"
      words   = "gs://acme-privacy-beam-dp-templates/private_vocabulary.json"
      stream  = "gs://acme-privacy-beam-dp-templates/privatize_stream.json"
    }
    error_message = "There must be a job for each entry, from the template of its pipeline."
  }

  assert {
    condition     = google_dataflow_flex_template_job.this["tickets"].name == "beam-dp-tickets"
    error_message = "Jobs must be named after their entries."
  }

  assert {
    condition = (
      google_dataflow_flex_template_job.this["items"].machine_type == "n2-standard-8" &&
      google_dataflow_flex_template_job.this["items"].num_workers == 2 &&
      google_dataflow_flex_template_job.this["items"].max_workers == 40 &&
      google_dataflow_flex_template_job.this["words"].max_workers == 10
    )
    error_message = "Jobs must have the machines of their entries."
  }

  assert {
    condition = { for key, job in google_dataflow_flex_template_job.this : key => job.on_delete } == {
      tickets = "cancel"
      items   = "cancel"
      words   = "cancel"
      stream  = "drain"
    }
    error_message = "A stream must publish what it has read when its entry goes."
  }
}

run "privately" {
  command = plan

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this : job.ip_configuration == "WORKER_IP_PRIVATE"
    ])
    error_message = "Workers must have no public addresses."
  }

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this :
      job.network == google_compute_network.this.name &&
      job.subnetwork == "regions/europe-west1/subnetworks/${google_compute_subnetwork.this.name}"
    ])
    error_message = "Workers must be in the network of this module."
  }

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this :
      job.kms_key_name == "projects/acme-privacy/locations/europe-west1/keyRings/beam-dp/cryptoKeys/dataflow"
    ])
    error_message = "Jobs must be encrypted with the key of Dataflow."
  }

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this :
      job.service_account_email == "beam-dp-worker@acme-privacy.iam.gserviceaccount.com"
    ])
    error_message = "Jobs must run as the worker."
  }

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this :
      job.staging_location == "gs://acme-privacy-beam-dp-staging/staging" &&
      job.temp_location == "gs://acme-privacy-beam-dp-staging/temp"
    ])
    error_message = "Jobs must stage in the bucket that is emptied."
  }

  assert {
    condition = alltrue([
      for job in google_dataflow_flex_template_job.this :
      job.sdk_container_image == "europe-west1-docker.pkg.dev/acme-privacy/beam-dp/pipelines:0.1.0"
    ])
    error_message = "Workers must run the image of the registry."
  }
}

run "charged" {
  command = plan

  assert {
    condition = google_dataflow_flex_template_job.this["tickets"].parameters == tomap({
      input        = "gs://in/tickets-*.jsonl"
      output       = "gs://out/tickets"
      epsilon      = "8"
      pipeline     = "privatize_text"
      budget_store = "gs://acme-privacy-beam-dp-budget/budgets"
      dataset      = "tickets"
      run_id       = "2024-05-17"
    })
    error_message = "A job must have its parameters and be charged to the budget of its data set under its run id."
  }
}

run "none" {
  command = plan

  variables {
    jobs = {}
  }

  assert {
    condition     = length(google_dataflow_flex_template_job.this) == 0
    error_message = "Without entries there must be no jobs."
  }
}
