"""One file for each table or figure: its docstring holds the command, the hardware, the run time and the numbers to
expect.
"""
