"""Choosing and moving pre-trained models: fine-tuning, transferability scores, several sources at once."""
