"""minitron: measure, trim, distill and check language models (the Minitron recipe)."""

__version__ = "0.1.0"
