"""Reports: one page for every command that answers something, and what each command puts on it."""
