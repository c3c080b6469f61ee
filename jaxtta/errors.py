"""The one error for what a person can put right."""


class InputError(ValueError):
    """Bad input from a person: one line saying what came, what was expected and what to do.

    A word in backticks that is a plan's field, such as `skip_bad`, is shown as the flag on the command line.
    """
