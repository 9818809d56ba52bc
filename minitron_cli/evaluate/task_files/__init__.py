"""Task files of the rows that lm-eval does not ship; a package, so that their code is installed with them."""
