"""Input: sources of records, and the pipeline from records to global batches."""
