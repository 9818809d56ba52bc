"""Text to token batches: sources, token files, the order of rows, calibration samples, validation windows."""
