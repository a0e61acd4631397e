terraform {
  # 1.11: write-only arguments, which keep the password of the budget store out of the state.
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 9.0"
    }
    # Flex Template jobs and service identities are in the beta provider only.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.50, < 9.0"
    }
  }
}
