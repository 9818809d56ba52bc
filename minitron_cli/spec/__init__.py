"""Ground floor: pure data and arithmetic over axes. No torch, no transformers."""
