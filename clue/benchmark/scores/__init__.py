"""From embeddings to one table: matching, metrics, probes, statistics."""
