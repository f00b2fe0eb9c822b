"""From embeddings to one table: matching, metrics, statistics. This module has the columns of the tables."""

JOB = ["dataset", "split", "method", "variant"]
IDENTITY_COLUMNS = ["run", *JOB, "seed"]
METRICS_COLUMNS = [*IDENTITY_COLUMNS, "transductive", "direction", "metric", "value", "status", "reason"]
MEASURED = ["device", "threads", "seconds", "peak_memory_mb", "gpu_memory_mb"]
RESOURCES_COLUMNS = [*IDENTITY_COLUMNS, *MEASURED, "epochs", "commit", "date"]
FAILURES_COLUMNS = [*IDENTITY_COLUMNS, "status", "reason", "log"]
