"""What is served: export of a SavedModel, its signatures, manifest and warm-up requests."""
