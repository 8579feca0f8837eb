"""One kind of table for everything that users may extend.

Each package owns its instance (row rules, models, cohorts, summaries). Keys are
names or types; an unknown key is answered with the keys there are, printed from
the table itself and never typed out.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from spectral_mlops.errors import InputError, UnknownNameError

Key = TypeVar("Key", str, type)
Entry = TypeVar("Entry")


def spell(key: object) -> str:
    """Return a key as a user would write it: the name of a type, else its text."""
    return key.__name__ if isinstance(key, type) else str(key)


def nearest(name: str, known: list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or nothing."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry(Generic[Key, Entry]):
    """A table from names or types to entries, filled by decoration.

    Args:
        kind: What one entry is, in the words of an error message ("model").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[Key, Entry] = {}

    def register(self, *keys: Key) -> Callable[[Entry], Entry]:
        """Return a decorator that files its argument under every key.

        Args:
            keys: One or more names or types.

        Returns:
            The decorator; it hands back what it decorates, unchanged.

        Raises:
            InputError: If a key is taken; a silent overwrite would change what
                another part of the program means by that name.
        """
        taken = [key for key in keys if key in self._entries]
        if taken:
            raise InputError(
                f"The {self.kind} '{spell(taken[0])}' is registered already; "
                f"choose a name other than {', '.join(map(spell, self))}."
            )

        def file(entry: Entry) -> Entry:
            self._entries.update(dict.fromkeys(keys, entry))
            return entry

        return file

    def get(self, key: Key) -> Entry:
        """Return the entry under ``key``.

        Raises:
            UnknownNameError: If there is none; the message lists the keys.
        """
        if key not in self._entries:
            known = [spell(known) for known in self._entries]
            raise UnknownNameError(
                f"Unknown {self.kind} '{spell(key)}': choose one of "
                f"{', '.join(known) or '(none registered)'}."
                f"{nearest(spell(key), known)}"
            )
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)
