"""Training on parameter servers: a coordinator hands out batches to workers."""
