"""Callbacks of tfdp's own: `tfdp.callbacks.BackupAndRestore`."""

from tfdp.fit import BackupAndRestore

__all__ = ["BackupAndRestore"]
