"""Callbacks of tfdp's own: `BackupAndRestore`, `Bench` and `Throughput`."""

from tfdp.bench.callbacks import Bench, Throughput
from tfdp.fit import BackupAndRestore

__all__ = ["BackupAndRestore", "Bench", "Throughput"]
