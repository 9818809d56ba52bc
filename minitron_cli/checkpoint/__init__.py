"""Floor 1: directories of tensors, read and written without building a model."""
