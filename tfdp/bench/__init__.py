"""Where the time of a training goes: input, training, synchronisation, or one slow worker.

Read in this order:

    record      bench.json: what was measured, in plain data
    verdict     from the five measured runs to one verdict, with remedies and their gain
    report      the same as text; words: times and sizes
    figure      ... as arrays of arrows (matplotlib)
    flops       the floating-point operations of a model, layer by layer
    model_facts     ... of a model at hand, and its devices
    hardware    what devices can do at most, and the memory that a process takes
    stages      the slowest stage of a tf.data pipeline, by name
    measure     the five runs, in rounds that take turns
    apply       a remedy tried: predicted beside measured
    session     what happens when a fit is measured: files, text, the end of the run
    callbacks   tfdp.callbacks.Bench and Throughput
    cost        what a step and a sum cost: ring, tree, hierarchical
    fitted      ... fitted to one bench or several
    predict     throughput, speed-up and the time of epochs elsewhere, with a band
    what_if     ... for what is asked on the command line
    scaling     the scaling report; scaling_figure: its bars
    tracing     traces of some steps; profile: which; timeline: all workers in one

The first four, and what predicts from a record, import no TensorFlow: a saved bench.json is read
in milliseconds.
"""
