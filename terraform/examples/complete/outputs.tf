output "buckets" {
  description = "Names of the buckets."
  value       = module.beam_dp.buckets
}

output "image" {
  description = "What to push the image of the pipelines as."
  value       = module.beam_dp.image
}

output "budget_store" {
  description = "What --budget_store takes."
  value       = module.beam_dp.budget_store
}

output "launch_flags" {
  description = "Flags of 'gcloud dataflow flex-template run'."
  value       = module.beam_dp.launch_flags
}
