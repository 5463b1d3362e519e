"""Callbacks of tfdp's own: `BackupAndRestore`, `Bench`, `GradientNoiseScale` and `Throughput`."""

from tfdp.bench.callbacks import Bench, Throughput
from tfdp.fit import BackupAndRestore
from tfdp.gradient_noise import GradientNoiseScale

__all__ = ["BackupAndRestore", "Bench", "GradientNoiseScale", "Throughput"]
