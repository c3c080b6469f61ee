"""Synthetic centres: fundus photographs, prostate MRI and abdominal CT volumes, and what scanners do to a volume."""
