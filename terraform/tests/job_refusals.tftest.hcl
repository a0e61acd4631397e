# Jobs that must be refused, each wrong in one way only, so that a rule that is missing shows.

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

run "refuses_jobs_without_budget_store" {
  command = plan

  variables {
    budget_store = "none"
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_name" {
  command = plan

  variables {
    jobs = {
      Items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_pipeline" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "demo"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_dataset" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "re/views"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_run_id" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = ""
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_same_run_id" {
  command = plan

  variables {
    jobs = {
      one = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
      two = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/b" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_local_input" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "/data/a.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_local_output" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "/data/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_without_output" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_dashes" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a", "--epsilon" = "1" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_own_budget" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a", budget_store = "sqlite:///budgets.db" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_public_ips" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a", use_public_ips = "true" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_own_account" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "aggregate"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a", service_account_email = "a@b" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_container_spec" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline            = "aggregate"
        dataset             = "reviews"
        run_id              = "2024-05-17"
        parameters          = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
        container_spec_path = "/templates/aggregate.json"
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_workers_none" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline    = "aggregate"
        dataset     = "reviews"
        run_id      = "2024-05-17"
        parameters  = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
        max_workers = 0
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_workers_many" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline    = "aggregate"
        dataset     = "reviews"
        run_id      = "2024-05-17"
        parameters  = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
        max_workers = 1001
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_workers_first" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline    = "aggregate"
        dataset     = "reviews"
        run_id      = "2024-05-17"
        parameters  = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
        num_workers = 11
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_workers_negative" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline    = "aggregate"
        dataset     = "reviews"
        run_id      = "2024-05-17"
        parameters  = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
        num_workers = -1
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_stream_of_files" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "privatize_stream"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input = "gs://acme-input/a-*.csv", output = "gs://acme-output/a" }
      }
    }
  }

  expect_failures = [var.jobs]
}

run "refuses_jobs_stream_to_a_subscription" {
  command = plan

  variables {
    jobs = {
      items = {
        pipeline   = "privatize_stream"
        dataset    = "reviews"
        run_id     = "2024-05-17"
        parameters = { input_subscription = "projects/acme/subscriptions/a", output_topic = "projects/acme/subscriptions/b" }
      }
    }
  }

  expect_failures = [var.jobs]
}
