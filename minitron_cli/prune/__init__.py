"""Trim a checkpoint along its axes, streaming from safetensors to safetensors."""
