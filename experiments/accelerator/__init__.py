"""What is measured on an accelerator, and what it is measured against."""
