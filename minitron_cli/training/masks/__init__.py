"""Learned masks: which units stay is trained together with the weights (Sheared-LLaMA, arXiv 2310.06694)."""
