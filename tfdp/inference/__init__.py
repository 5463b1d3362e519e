"""Inference over shards: each row once, in the order of the input, whatever dies.

Read in this order: shards (what is cut), listing and records (where the rows are), folder (what is
complete), settings and job (the story of a run), pool and handout (who does what), worker (reading,
running and writing a part), readers, model, writers; rows is tfdp.predict. The supervisor, job with
all that it imports, knows no TensorFlow.
"""
