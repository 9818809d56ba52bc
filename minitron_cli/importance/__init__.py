"""Floor 2: what matters. One forward pass over calibration samples scores every axis; depth sweeps drop blocks."""
