variable "project_id" {
  description = "Project for all of it. One of its own: Dataflow's role for workers reads every bucket of the project."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be the id of a project: 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of the data, the keys, the workers and the budget store."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]{1,2}$", var.region))
    error_message = "region must be one region, such as europe-west1: keys and jobs must be in the same one."
  }
}

variable "name" {
  description = "Starts the names of what is made."
  type        = string
  default     = "beam-dp"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$", var.name))
    error_message = "name must be 1 to 20 lower-case letters, digits and hyphens, the first a letter."
  }
}

variable "labels" {
  description = "Labels of everything that takes labels."
  type        = map(string)
  default     = { application = "beam_dp" }

  validation {
    condition = alltrue([
      for key, value in var.labels :
      can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))
    ])
    error_message = "labels must be at most 63 lower-case letters, digits, '_' and '-', keys beginning with a letter."
  }
}

variable "enable_services" {
  description = "Whether to turn on the services of Google Cloud that are needed. False where somebody else does."
  type        = bool
  default     = true
}

variable "bucket_prefix" {
  description = "Starts the names of the buckets, which are unique in all of Google Cloud. Default: PROJECT_ID-NAME."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_prefix == null || can(regex("^[a-z0-9][a-z0-9-]{1,51}[a-z0-9]$", var.bucket_prefix))
    error_message = "bucket_prefix must be 3 to 53 lower-case letters, digits and hyphens, no hyphen at its ends."
  }
}

variable "staging_days" {
  description = "Days after which files in the staging bucket are deleted. A job must not run longer."
  type        = number
  default     = 14

  validation {
    condition     = var.staging_days >= 1 && var.staging_days <= 365 && floor(var.staging_days) == var.staging_days
    error_message = "staging_days must be a whole number from 1 to 365."
  }
}

variable "subnetwork_range" {
  description = "Addresses of the workers."
  type        = string
  default     = "10.64.0.0/20"

  validation {
    condition = (
      try(cidrhost(var.subnetwork_range, 0) == split("/", var.subnetwork_range)[0], false) &&
      can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.).*/(1[6-9]|2[0-8])$", var.subnetwork_range))
    )
    error_message = "subnetwork_range must be a private IPv4 network from /16 to /28, such as 10.64.0.0/20."
  }
}

variable "key_rotation_days" {
  description = "Days after which a key gets a new version. Old versions stay, for what they encrypted."
  type        = number
  default     = 90

  validation {
    condition = (
      var.key_rotation_days >= 1 && var.key_rotation_days <= 365 &&
      floor(var.key_rotation_days) == var.key_rotation_days
    )
    error_message = "key_rotation_days must be a whole number from 1 to 365."
  }
}

variable "key_protection_level" {
  description = "SOFTWARE, or HSM for keys in hardware."
  type        = string
  default     = "SOFTWARE"

  validation {
    condition     = contains(["SOFTWARE", "HSM"], var.key_protection_level)
    error_message = "key_protection_level must be SOFTWARE or HSM."
  }
}

variable "launchers" {
  description = "Who may start jobs, as members of IAM policies: user:..., group:..., serviceAccount:..., principal..."
  type        = set(string)
  default     = []

  validation {
    condition = alltrue([
      for member in var.launchers :
      can(regex("^(user:|group:|serviceAccount:|principal://|principalSet://)[^*]+$", member))
    ])
    error_message = "launchers must be users, groups, service accounts or principals: nobody starts jobs anonymously."
  }
}

variable "image" {
  description = "The image of the pipelines in the registry of this module: NAME:TAG or NAME@sha256:DIGEST."
  type        = string
  default     = "pipelines:0.1.0"

  validation {
    condition = (
      can(regex("^[a-z0-9][a-z0-9._/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})$", var.image)) &&
      !endswith(var.image, ":latest")
    )
    error_message = "image must be NAME:TAG or NAME@sha256:DIGEST, and a tag that stays: not latest."
  }
}

variable "budget_store" {
  description = "Where budgets are kept: bucket, sql (Cloud SQL for PostgreSQL), or none, which launches no job."
  type        = string
  default     = "bucket"

  validation {
    condition     = contains(["bucket", "sql", "none"], var.budget_store)
    error_message = "budget_store must be bucket, sql or none."
  }
}

variable "budget_sql" {
  description = "The server of the budget store where that is sql. Raise password_version to set the password anew."
  type = object({
    version             = optional(string, "POSTGRES_16")
    tier                = optional(string, "db-custom-1-3840")
    availability        = optional(string, "REGIONAL")
    user                = optional(string, "beam_dp")
    database            = optional(string, "budgets")
    password_version    = optional(number, 1)
    deletion_protection = optional(bool, true)
  })
  default  = {}
  nullable = false

  validation {
    condition     = can(regex("^POSTGRES_1[4-9]$", var.budget_sql.version))
    error_message = "budget_sql.version must be POSTGRES_14 or newer."
  }

  validation {
    condition     = contains(["REGIONAL", "ZONAL"], var.budget_sql.availability)
    error_message = "budget_sql.availability must be REGIONAL, which survives the loss of a zone, or ZONAL."
  }

  validation {
    condition = alltrue([
      for part in [var.budget_sql.user, var.budget_sql.database] : can(regex("^[a-z_][a-z0-9_]{0,62}$", part))
    ])
    error_message = "budget_sql.user and .database must be lower-case letters, digits and underscores."
  }

  validation {
    condition = (
      var.budget_sql.password_version >= 1 &&
      floor(var.budget_sql.password_version) == var.budget_sql.password_version
    )
    error_message = "budget_sql.password_version must be a whole number of at least 1."
  }
}

variable "budget_sql_password" {
  description = "Password of the budget store where that is sql. It goes to Secret Manager and the server alone."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.budget_store != "sql" || try(length(var.budget_sql_password) >= 20, false)
    error_message = "budget_sql_password must have at least 20 characters where budget_store is sql."
  }
}

variable "billing_alert" {
  description = "A warning by mail when costs approach an amount a month, in the account's currency. Default: none."
  type = object({
    billing_account = string
    monthly_amount  = number
    currency        = optional(string)
    thresholds      = optional(list(number), [0.5, 0.9, 1.0])
    emails          = optional(set(string), [])
  })
  default = null

  validation {
    condition = (
      var.billing_alert == null || can(regex("^[0-9A-F]{6}(-[0-9A-F]{6}){2}$", var.billing_alert.billing_account))
    )
    error_message = "billing_alert.billing_account must be of the form 0123AB-4567CD-89EF01."
  }

  validation {
    condition = var.billing_alert == null || try(
      var.billing_alert.monthly_amount >= 1 &&
      floor(var.billing_alert.monthly_amount) == var.billing_alert.monthly_amount, false
    )
    error_message = "billing_alert.monthly_amount must be a whole number of at least 1."
  }

  validation {
    condition = var.billing_alert == null || try(
      length(var.billing_alert.thresholds) > 0 && alltrue([for part in var.billing_alert.thresholds : part > 0]), false
    )
    error_message = "billing_alert.thresholds must be shares of the amount above 0, such as 0.9."
  }

  validation {
    condition = var.billing_alert == null || try(
      alltrue([for email in var.billing_alert.emails : can(regex("^[^@ ]+@[^@ ]+$", email))]), false
    )
    error_message = "billing_alert.emails must be addresses."
  }
}

variable "jobs" {
  description = <<-EOT
    Jobs to launch, by name. parameters are the options of the pipeline without dashes, input and output among them (of
    privatize_stream input_subscription and output_topic); the budget store, data set and run id are added. container_spec_path is the template, by default PIPELINE.json in the
    bucket of templates. A job that has ended is launched again by the next apply and refused by the budget store, which
    has seen its run id: take it out when it is done.
  EOT
  type = map(object({
    pipeline            = string
    dataset             = string
    run_id              = string
    parameters          = map(string)
    container_spec_path = optional(string)
    machine_type        = optional(string)
    num_workers         = optional(number)
    max_workers         = optional(number, 10)
  }))
  default = {}

  validation {
    condition     = length(var.jobs) == 0 || var.budget_store != "none"
    error_message = "jobs need a budget_store: without one, each apply after a job's end would run it and spend anew."
  }

  validation {
    condition     = alltrue([for name, job in var.jobs : can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", name))])
    error_message = "jobs must have names of 1 to 40 lower-case letters, digits and hyphens, the first a letter."
  }

  validation {
    condition = alltrue([
      for job in var.jobs :
      contains(["privatize_text", "privatize_stream", "aggregate", "private_vocabulary"], job.pipeline)
    ])
    error_message = "jobs: pipeline must be privatize_text, privatize_stream, aggregate or private_vocabulary."
  }

  validation {
    condition = alltrue(flatten([
      for job in var.jobs : [for id in [job.dataset, job.run_id] : can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", id))]
    ]))
    error_message = "jobs: dataset and run_id must be 1 to 64 letters, digits, '.', '_', '-', a letter or digit first."
  }

  validation {
    condition     = length(distinct([for job in var.jobs : "${job.dataset}/${job.run_id}"])) == length(var.jobs)
    error_message = "jobs on one dataset must have different run ids: the budget store runs each once."
  }

  validation {
    condition = alltrue(flatten([
      for job in var.jobs : [for flag in ["input", "output"] : startswith(lookup(job.parameters, flag, ""), "gs://")]
      if job.pipeline != "privatize_stream"
    ]))
    error_message = "jobs: parameters must name input and output, both gs://..., which workers can reach."
  }

  validation {
    condition = alltrue(flatten([
      for job in var.jobs : [
        for flag, kind in { input_subscription = "subscriptions", output_topic = "topics" } :
        can(regex("^projects/[^/]+/${kind}/[^/]+$", lookup(job.parameters, flag, "")))
      ] if job.pipeline == "privatize_stream"
    ]))
    error_message = "jobs: parameters of a stream must name input_subscription and output_topic: projects/PROJECT/..."
  }

  validation {
    condition = alltrue(flatten([
      for job in var.jobs : [for flag in keys(job.parameters) : can(regex("^[a-z][a-z0-9_]*$", flag))]
    ]))
    error_message = "jobs: parameters must be named as the options are, without dashes: max_words, not --max_words."
  }

  validation {
    condition = alltrue([
      for job in var.jobs : length(setintersection(keys(job.parameters), [
        "pipeline", "budget_store", "dataset", "run_id", "runner", "engine", "project", "region", "job_name", "network",
        "subnetwork", "use_public_ips", "no_use_public_ips", "service_account_email", "dataflow_kms_key",
        "sdk_container_image", "staging_location", "temp_location", "machine_type", "num_workers", "max_num_workers",
      ])) == 0
    ])
    error_message = "jobs: parameters must leave out what this module sets: the budget, and where and as whom to run."
  }

  validation {
    condition = alltrue([
      for job in var.jobs : job.container_spec_path == null || can(regex("^gs://.+\\.json$", job.container_spec_path))
    ])
    error_message = "jobs: container_spec_path must be gs://BUCKET/FILE.json."
  }

  validation {
    condition = alltrue([
      for job in var.jobs :
      job.max_workers >= 1 && job.max_workers <= 1000 && coalesce(job.num_workers, 1) >= 1 &&
      coalesce(job.num_workers, 1) <= job.max_workers
    ])
    error_message = "jobs: num_workers must be from 1 to max_workers, and max_workers at most 1000."
  }
}
