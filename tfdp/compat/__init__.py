"""The private names of TensorFlow and Keras that we cannot avoid, as functions named by purpose.

Everything else in tfdp uses public names. Each function says what it stands for and why there is no
public way; tried with TensorFlow 2.20 and 2.21, Keras 3.13.2 to 3.15.1. Import the modules:
`from tfdp.compat import keras_variables`.

What tfdp plants on objects that are not its own, here and in fit/, and why. For good:

    keras.Model         fit, evaluate, ..., save, ...: see fit.enable; fit.disable takes it back
    a model             _tfdp_trainer: what trains it lives as long as the model
    DistributedVariable __int__ and the like, where TensorFlow has none (let_variables_convert)
    a strategy          fresh collective keys; what watches the first values of its variables
    ParameterServerStrategy     makes large variables a partition at a time; their __array__
    a variable on servers       tfdp_whole (of a partition); _tfdp_rows_once (its gradients' rows)
    sys.meta_path       a finder for as long as an import is waited for (on_import)

While a step is traced, and in replicas' own threads only where threads matter:

    CompileLoss, Mean metrics, activity regularizers    ask which replica they run for: exact sums
    layers              _loss_ids: losses of each replica's own; _moments: rows of all replicas
    ReplicaContext      all_reduce: by what carries the gradients, where that is not tf.distribute
    Keras variables     _value: the copy of this replica
    optimizers          apply: gradients are summed first; _distribution_strategy: none of it;
                        _clip_gradients, update_step: partitions of one variable, on its server
    base_optimizer.ops  `cond` inside one call of an optimizer: what it decides is known on servers,
                        where a branch of a graph could not lock variables; a module's name is the
                        one place where Keras lets it in
    layer.__class__     a subclass whose trainable_variables are partitions: a property can only be
                        replaced on a class, and the user's step asks the layer itself for it

While fit runs, in a process that is not the chief: model.save, save_weights and export do nothing.
"""
