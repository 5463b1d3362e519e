"""Synchronous training: replicas of the model, in one process or in several workers."""
