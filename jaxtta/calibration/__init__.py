"""Asking the source model, before it is shipped, what to do with which image."""
