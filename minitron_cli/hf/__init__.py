"""What every verb needs to know of a machine and of a transformers model; each fact once."""
