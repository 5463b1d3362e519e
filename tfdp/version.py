"""The version, on its own so that a build can read it without importing TensorFlow."""

VERSION = "0.1.0"
