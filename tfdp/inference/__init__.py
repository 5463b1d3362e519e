"""Inference over shards: each row once, in the order of the input, whatever dies.

The path of a job, which is the order to read in: settings and job (the command is checked, workers
are started and watched: pool, status), worker (the model is loaded), plan (what the parts are made
with and which records each holds: input_files, shards; written to job.json), claims (who makes
which part), raw_rows, readers and examples (records become inputs), model (inputs become outputs),
part and writers (a part is written, and gets its name). folder knows where all this is, rows is
tfdp.predict. The supervisor, job with all that it imports, knows no TensorFlow.
"""
