"""Which global batch: the largest that fits, what it gains, and what it costs in steps.

Read in this order:

    memory_limit    how much memory a process may take, and how much it takes
    settings        what a trial is asked for
    record          tune_batch.json: what was measured and recommended, in plain data
    search          which batch is tried next: a line through the memory of those that ran
    recommend       from throughput and noise scale to a batch, a range and the reason
    report, figure  the same as text, and drawn (matplotlib)
    trial           a trial, in the process that trains: it measures itself
    trials          starts the trials, each in processes of its own, and reads what they say
    call            tfdp.tune_batch

All but the last three import neither TensorFlow nor anything that starts processes.
"""
