"""What a person or the machine can put right, each in one line."""

import errno


class InputError(ValueError):
    """Bad input from a person: one line saying what came, what was expected and what to do.

    A word in backticks that is a plan's field, such as `skip_bad`, is shown as the flag on the command line.
    """


MENDS = {
    errno.ENOSPC: "free some space, or give a folder on another disk",
    errno.EDQUOT: "free some space, or give a folder on another disk",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a folder that you may read and write",
    errno.EPERM: "give a folder that you may read and write",
    errno.EMFILE: "allow the process more open files (ulimit -n)",
    errno.ENFILE: "close some programs",
    errno.ENAMETOOLONG: "give shorter names",
}
LITTLE_MEMORY = "not enough memory; give a smaller `batch`, `size`, `width` or `features`, or a machine with more"


def of_the_machine(error: BaseException) -> str | None:
    """One line for an error that the machine is the reason of, its disk or its memory; None for any other."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        mend = MENDS.get(error.errno, "nothing can be written or read there")
        return f"{place}{error.strerror or error or type(error).__name__}; {mend}"
    exhausted = isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in str(error) or "Out of mem" in str(error))
    return LITTLE_MEMORY if isinstance(error, MemoryError) or exhausted else None
