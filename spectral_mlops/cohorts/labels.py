"""Labels of groups: new names for them, and which of them counts as positive."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from spectral_mlops.cohorts.columns import plain
from spectral_mlops.errors import InputError
from spectral_mlops.registry import nearest

NUMBERS = 10
"""More different labels than that, numbers all of them, name no groups."""
POSITIVE = (
    *("patient", "patients", "case", "cases", "sz", "scz", "schz"),
    *("schizophrenia", "1"),
)


def choose_positive(
    labels: Sequence[str], named: str | None, column: str, where: object
) -> tuple[str, str]:
    """Return the label counted as positive, and a note on how it was chosen.

    Of two labels, one that says "patient" (`POSITIVE`) is taken; anything less
    plain must be named, for published tables give opposite meanings to one code.

    Args:
        labels: The different labels.
        named: The user's choice, if any.
        column: What the file calls the column, for the message.
        where: The file, for the message.

    Returns:
        The label and the note; no label where they are measurements (`NUMBERS`).

    Raises:
        InputError: If the choice is no label, or none is plain.
    """
    known = sorted(set(labels))
    if named is not None:
        if named not in known:
            raise InputError(
                f"positive='{named}' is no label of '{column}' in {where}; its labels "
                f"are {', '.join(known)}.{nearest(named, known)}"
            )
        return named, f"positive: '{named}' (as set)"
    if are_measurements(known):
        return "", f"'{column}' holds numbers, no groups"
    likely = [label for label in known if plain(label) in POSITIVE]
    if (
        len(known) != 2
        or len(likely) != 1
        or known == ["1", "2"]
        or "control" in plain(column)
    ):
        raise InputError(
            f"{where}: which label of '{column}' counts as positive cannot be told "
            f"from {', '.join(known)}; say so with positive=."
        )
    return likely[0], f"positive: '{likely[0]}' (set positive= to change)"


def relabel(
    labels: list[str], names: Mapping[str, str] | None, path: Path, column: str
) -> list[str]:
    """Give every label its new name.

    Args:
        labels: One label a person.
        names: Old name to new name; several may get the same.
        path: The file, for the message.
        column: What it calls the column, for the message.

    Returns:
        The new labels.

    Raises:
        InputError: If a label has no new name, or a name no label; without names, if
            two labels are most likely one.
    """
    if not names:
        if (twice := written_twice(labels)) is not None:
            raise InputError(
                f"{path}: '{twice[0]}' and '{twice[1]}' of '{column}' are most likely "
                "one label written in two ways; write them alike, or give every label "
                "its name with label_names=."
            )
        return labels
    known = sorted(set(labels))
    without = [label for label in known if label not in names]
    unused = [label for label in names if label not in known]
    if without or unused:
        wrong = f"no name for '{without[0]}'" if without else f"unknown '{unused[0]}'"
        raise InputError(
            f"label_names: {wrong}; the labels of '{column}' in {path} are "
            f"{', '.join(known)}, and each needs one name."
        )
    return [names[label] for label in labels]


def are_measurements(labels: Collection[str]) -> bool:
    """Tell whether different labels are numbers, and too many to name groups."""
    return len(labels) > NUMBERS and all(map(_is_number, labels))


def written_twice(labels: Iterable[str]) -> tuple[str, str] | None:
    """Return two labels that are most likely one: ``Control, control`` or ``1, 1.0``.

    Args:
        labels: Any, each as often as it comes.

    Returns:
        The first two found; None of measurements, whose numbers are what counts.
    """
    known = sorted(set(labels))
    if are_measurements(known):
        return None
    first: dict[float | str, str] = {}
    for label in known:
        word = "".join(label.casefold().replace("_", " ").split())
        same = first.setdefault(float(label) if _is_number(label) else word, label)
        if same != label:
            return same, label
    return None


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
