"""A fit that was killed goes on where it was: at its step, with its weights, its callbacks.

    settings        what a BackupAndRestore asks for; where a checkpoint stands
    backup          what is saved when
    resume          what is read at the beginning
    callback_state  what callbacks remember from epoch to epoch
    writer          one file is written while training goes on
    preemption      SIGTERM: save, and end

The engines give what their model holds (`trainer.Trainer.snapshot`, `restore`), the feed its place.
"""
