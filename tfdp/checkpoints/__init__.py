"""Checkpoints on disk: files that are whole or not there. Imports no TensorFlow.

    tensors     arrays in the safetensors format, written one after the other
    store       a folder of steps: committed by a rename, verified before they are used
    lease       who may write into a folder

A step is a folder: state.safetensors (all arrays), run.json (all else), manifest.json (their sizes
and SHA-256). The package safetensors alone reads the arrays.
"""
