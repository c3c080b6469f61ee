"""What the command line does, one file per command; each is a plain function that Python scripts can call too."""
