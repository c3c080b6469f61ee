"""What jaxtta does from files to files, a module for each command.

Each command is a function of its plan. It raises InputError for anything wrong with the input, and nothing has been
written then.
"""
