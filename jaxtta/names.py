"""Names of images, domains, classes and labels, in tables and as files: the one place where a name becomes a path.

A name is text, the same whatever the locale: the bytes of a file's name as UTF-8, those that are none kept as Python
keeps them (`surrogateescape`). So it goes into tables and back. As files two names are one where they differ in case or
in Unicode's composition alone: some file systems cannot tell them apart.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable

from jaxtta.errors import InputError

ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # of tables
LONGEST = 255  # bytes of a file's name
_ROOM = 12  # of them for a suffix and what marks a temporary file


def text(path: str) -> str:
    """The name of a path of this system."""
    return os.fsencode(path).decode(**ENCODING)


def path_of(name: str) -> str:
    """The path of this system that has this name."""
    return os.fsdecode(name.encode(**ENCODING))


def native(name: str) -> str:
    """The same of what is to be written: each of its parts short enough to take a suffix."""
    return path_of("/".join(map(shortened, name.split("/"))))


def shortened(part: str) -> str:
    """A part of a path with room for a suffix: what is too long is cut and ends in a digest of the whole."""
    content = part.encode(**ENCODING)
    if len(content) <= LONGEST - _ROOM:
        return part
    mark = f"~{hashlib.sha256(content).hexdigest()[:12]}"
    return content[: LONGEST - _ROOM - len(mark)].decode("utf-8", "ignore") + mark


def composed(name: str) -> str:
    """A name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """What names have in common that some file system takes for one."""
    return composed(composed(name).casefold())


def of_label(label: str) -> str:
    """The file of a label such as `tent:learning_rate=1e-3`: letters, digits and `.=-_` as they are."""
    return native(re.sub(r"^\.+|[^\w.=-]+", "+", label))


def of_class(label: str) -> str:
    """A class in the name of a file, behind the image's and `_`: it has none, so that the last one parts the two."""
    return label.replace("_", "-")


def check(
    what: str,
    names: Iterable[str],
    *,
    file: Callable[[str], str] = native,
    reserved: Collection[str] = (),
) -> None:
    """Raises InputError unless each name makes a file in the folder it is meant for, and one of its own.

    Args:
        what: they are, for the message.
        names: of one folder.
        file: what a name makes.
        reserved: files that the folder has beside.
    """
    seen = {alike(name): f"{name}, which is kept for results" for name in reserved}
    for name in names:
        try:
            made = file(name)
            made.encode(**ENCODING)
        except (UnicodeEncodeError, AttributeError):  # half a character; no text at all
            made = ""
        if not made.strip(". ") or {*made} & {"/", os.sep, "\0"}:
            raise InputError(f"the {what} {name!r}: results bear its name, and no file can; give another")
        if alike(made) in seen:
            raise InputError(
                f"the {what} {name!r} makes the same file as {seen[alike(made)]}; "
                "give another, that differs in more than case and signs"
            )
        seen[alike(made)] = repr(name)
