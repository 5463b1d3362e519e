"""Finding out, before a run, whether it can go well: tfdp doctor.

Read in this order:

    facts        what a task knows of its machine, without TensorFlow
    probe        what each task of the cluster runs: facts, ways to the others, timed all-reduces
    report       from what the tasks found out to a verdict, in words and as JSON
"""
