variable "project_id" {
  description = "Project of beam_dp."
  type        = string
}

variable "region" {
  description = "Region of data and workers."
  type        = string
  default     = "europe-west1"
}

variable "launchers" {
  description = "Who may start jobs."
  type        = set(string)
  default     = []
}

variable "billing_account" {
  description = "The account that pays."
  type        = string
}

variable "emails" {
  description = "Who is told of costs."
  type        = set(string)
  default     = []
}

variable "budget_sql_password" {
  description = "Password of the budget store: export TF_VAR_budget_sql_password=\"$(openssl rand -base64 33)\""
  type        = string
  ephemeral   = true
  sensitive   = true
}

variable "launch" {
  description = "Whether to launch the jobs: true once image, templates, index, input and budgets are there."
  type        = bool
  default     = false
}
