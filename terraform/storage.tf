locals {
  bucket_prefix = coalesce(var.bucket_prefix, "${var.project_id}-${var.name}")

  # For each bucket what the worker may do in it. Days: of live objects, of old versions (0: none are kept), and for
  # which Cloud Storage keeps what was deleted or replaced, whoever did it. Null: no limit.
  buckets = merge(
    {
      # Not kept after deletion: the data are of people who may ask for theirs to be erased.
      input = { role = "roles/storage.objectViewer", live_days = null, version_days = 0, undelete_days = 0 }
      # A release that is lost cannot be computed again without spending anew.
      output = { role = "roles/storage.objectUser", live_days = null, version_days = 0, undelete_days = 30 }
      staging = {
        role = "roles/storage.objectUser", live_days = var.staging_days, version_days = 0, undelete_days = 0
      }
      # Whoever can write these two decides what runs and what is drawn.
      templates = { role = "roles/storage.objectViewer", live_days = null, version_days = 90, undelete_days = 7 }
      index     = { role = "roles/storage.objectViewer", live_days = null, version_days = 90, undelete_days = 7 }
    },
    var.budget_store == "bucket" ? {
      # An append replaces the object, for which Cloud Storage wants the right to delete. So it is not withheld; instead
      # every former text is a version, and a version that is deleted can be brought back for 90 days.
      budget = { role = "roles/storage.objectUser", live_days = null, version_days = null, undelete_days = 90 }
    } : {},
  )
  bucket_names = { for purpose in keys(local.buckets) : purpose => "${local.bucket_prefix}-${purpose}" }
}

resource "google_storage_bucket" "this" {
  for_each = local.buckets

  project                     = var.project_id
  name                        = local.bucket_names[each.key]
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false
  labels                      = var.labels

  encryption {
    default_kms_key_name = local.keys["storage"]
  }

  versioning {
    enabled = each.value.version_days != 0
  }

  soft_delete_policy {
    retention_duration_seconds = each.value.undelete_days * 86400
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.live_days == null ? [] : [each.value.live_days]
    content {
      action {
        type = "Delete"
      }
      condition {
        age = lifecycle_rule.value
      }
    }
  }

  dynamic "lifecycle_rule" {
    for_each = coalesce(each.value.version_days, 0) == 0 ? [] : [each.value.version_days]
    content {
      action {
        type = "Delete"
      }
      condition {
        days_since_noncurrent_time = lifecycle_rule.value
        with_state                 = "ARCHIVED"
      }
    }
  }

  # Of uploads that broke off.
  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.this]
}

resource "google_storage_bucket_iam_member" "worker" {
  for_each = local.buckets

  bucket = google_storage_bucket.this[each.key].name
  role   = each.value.role
  member = "serviceAccount:${local.worker}"

  depends_on = [google_service_account.worker]
}

resource "google_storage_bucket_iam_member" "launcher" {
  bucket = google_storage_bucket.this["templates"].name
  # The specification of a template is read with the rights of who launches it.
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${local.launcher}"

  depends_on = [google_service_account.launcher]
}
