# A data set's budgets are made before its first job, from a machine that reaches the store. Here, each with
# --budget_store="$(terraform output -raw budget_store)":
#   beam-dp budget create tickets --model=metric --epsilon=8 --index=gs://PROJECT-beam-dp-index/glove
#   beam-dp budget create tickets --epsilon=4 --delta=1e-5 --privacy_unit=id
#   beam-dp budget create events --epsilon=4 --delta=1e-5 --privacy_unit=user

locals {
  bucket_prefix = "${var.project_id}-beam-dp"

  jobs = {
    private-tickets = {
      pipeline = "privatize_text"
      dataset  = "tickets"
      run_id   = "2024-05-texts"
      parameters = {
        input        = "gs://${local.bucket_prefix}-input/tickets/*.jsonl"
        output       = "gs://${local.bucket_prefix}-output/tickets/2024-05"
        mechanism    = "multivariate_laplace"
        epsilon      = "8"
        text_column  = "body"
        keep_columns = "id"
        index        = "gs://${local.bucket_prefix}-index/glove"
      }
      machine_type = "n2-standard-4"
      max_workers  = 20
    }
    public-items = {
      pipeline = "aggregate"
      dataset  = "events"
      run_id   = "2024-05-items"
      parameters = {
        input                  = "gs://${local.bucket_prefix}-input/events/*.parquet"
        output                 = "gs://${local.bucket_prefix}-output/items/2024-05"
        privacy_unit           = "user"
        by                     = "item"
        metrics                = "count,mean:amount:0:100"
        max_partitions         = "4"
        max_rows_per_partition = "2"
        epsilon                = "1"
        delta                  = "1e-6"
      }
    }
    public-words = {
      pipeline = "private_vocabulary"
      dataset  = "tickets"
      run_id   = "2024-05-words"
      parameters = {
        input          = "gs://${local.bucket_prefix}-input/tickets/*.jsonl"
        output         = "gs://${local.bucket_prefix}-output/words/2024-05"
        text_column    = "body"
        privacy_unit   = "id"
        ngrams         = "1/2"
        max_partitions = "50"
        epsilon        = "1"
        delta          = "1e-6"
      }
    }
  }
}
