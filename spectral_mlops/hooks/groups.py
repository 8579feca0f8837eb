"""Labels of a batch: which samples belong to which group.

Keys are the text of the label as a Python scalar (``"patient"``, ``"1"``), so
labels may come as lists, NumPy arrays or tensors on any device and are read once,
on the CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.records import POOLED

UNNAMED = "group"
"""Name of the grouping when bare labels are given."""
MISSING = "missing"
_MISSING_TEXTS = {"n/a", "nan", "NaN", "None", "<NA>", "NaT", ""}

Labels = Sequence[Any] | Tensor | Any
Groups = Labels | Mapping[str, Labels]


@dataclass(frozen=True, eq=False)
class Labelling:
    """The samples of one batch and what they are called.

    Attributes:
        groupings: Grouping name to ``{group: sample indices, shape [n_g]}``, groups
            sorted by name; the groups of a grouping partition the samples.
        size: Number of samples ``N``.
        subjects: The person behind each sample, length ``N``.
        targets: What training predicts, per sample, or ``None`` if not told.
        named: Whether groupings were given by name.
        identified: Whether the person behind each sample was told.
    """

    groupings: dict[str, dict[str, Tensor]]
    size: int
    subjects: tuple[str, ...]
    targets: tuple[str, ...] | None
    named: bool
    identified: bool

    def people(self, grouping: str, group: str) -> list[str]:
        """Return the person behind each sample of a group, none if it is absent."""
        samples = self.groupings[grouping].get(group)
        return [] if samples is None else [self.subjects[i] for i in samples.tolist()]


def read_labelling(
    groups: Groups,
    subjects: Labels | None = None,
    targets: Labels | None = None,
    missing: str = "raise",
    batch: int = 0,
) -> Labelling:
    """Read the labels of one batch.

    Args:
        groups: Labels of shape ``[N]``, or ``{grouping: labels}``.
        subjects: The person behind each sample, shape ``[N]``; each sample is a
            person of its own if not given.
        targets: What training predicts, shape ``[N]``.
        batch: Number of the batch within its context; samples without a subject are
            other people in each.
        missing: ``"raise"`` refuses missing labels (``None``, NaN, ``n/a``);
            ``"group"`` makes them the group ``missing``, so that the groups still
            add up to the batch.

    Returns:
        The labelling.

    Raises:
        InputError: If lengths differ, a label is missing or named ``all``.
    """
    if missing not in ("raise", "group"):
        raise InputError(f"missing='{missing}': choose 'raise' or 'group'.")
    named = isinstance(groups, Mapping)
    columns = dict(groups) if isinstance(groups, Mapping) else {UNNAMED: groups}
    if not columns:
        raise InputError("groups is empty: give labels or {grouping: labels}.")
    texts = {
        str(name): _read(str(name), labels, missing) for name, labels in columns.items()
    }
    if POOLED in texts:
        raise InputError(
            f"The grouping '{POOLED}' is taken by the pooled group; rename it."
        )
    size = len(next(iter(texts.values())))
    people = label_texts(subjects) if subjects is not None else None
    nameless = [i for i, who in enumerate(people or ()) if who in _MISSING_TEXTS]
    if nameless:
        raise InputError(
            f"subjects: sample {nameless[0]} has none ({len(nameless)} of "
            f"{len(people or ())}): name the person behind every sample."
        )
    goals = label_texts(targets) if targets is not None else None
    for name, column in {**texts, "subjects": people, "targets": goals}.items():
        if column is not None and len(column) != size:
            raise InputError(
                f"'{name}' has {len(column)} entries and '{next(iter(texts))}' has "
                f"{size}: give one per sample."
            )
    return Labelling(
        groupings={name: _indices(column) for name, column in texts.items()},
        size=size,
        subjects=tuple(people or (f"sample {batch}.{i}" for i in range(size))),
        targets=None if goals is None else tuple(goals),
        named=named,
        identified=people is not None,
    )


def read_fixed(groups: Groups, missing: str = "raise") -> dict[str, frozenset[str]]:
    """Read the list of all groups that may be seen.

    Args:
        groups: ``{grouping: names}``, or the names of bare labels.
        missing: See `read_labelling`.

    Returns:
        The names of each grouping, as labels are read.

    Raises:
        InputError: If there are none, or a name cannot be a label.
    """
    columns = groups if isinstance(groups, Mapping) else {UNNAMED: groups}
    fixed = {
        str(name): frozenset(
            read_labelling({name: names}, missing=missing).groupings[str(name)]
        )
        for name, names in columns.items()
    }
    if not fixed or not all(fixed.values()):
        raise InputError(f"groups={groups!r}: name at least one group per grouping.")
    return fixed


def refuse_unlisted(labelling: Labelling, fixed: Mapping[str, frozenset[str]]) -> None:
    """Refuse labels that are not in the list of `read_fixed`.

    Raises:
        InputError: Naming the grouping or the group.
    """
    for grouping, groups in labelling.groupings.items():
        if grouping not in fixed:
            raise InputError(
                f"Grouping '{grouping}' is not in groups= ({', '.join(fixed)}): name "
                "it and its groups there when the monitor is made."
            )
        unlisted = sorted(groups.keys() - fixed[grouping])
        if unlisted:
            raise InputError(
                f"Grouping '{grouping}': group '{unlisted[0]}' is not in groups= "
                f"({', '.join(sorted(fixed[grouping]))}): name every group there when "
                "the monitor is made."
            )


def label_texts(labels: Labels) -> list[str]:
    """Return labels as text of their Python scalars; missing ones as they print."""
    if hasattr(labels, "columns"):
        raise InputError(
            f"Labels are a table of {len(labels.columns)} columns: give one column, "
            "or {grouping: column}."
        )
    if hasattr(labels, "tolist"):  # tensors, arrays, pandas columns
        labels = labels.tolist()
    unordered = isinstance(labels, set | frozenset | Mapping)
    text = isinstance(labels, str | bytes)
    if text or not hasattr(labels, "__iter__") or unordered:
        raise InputError(f"Labels {labels!r} are not a sequence: give one per sample.")
    return [x if type(x) is str else _text(i, x) for i, x in enumerate(labels)]


def _text(i: int, label: Any) -> str:
    """Return one label as text.

    Raises:
        InputError: If it is not a single value.
    """
    single = not hasattr(label, "__len__") or isinstance(label, str | bytes)
    if getattr(label, "ndim", 0) == 0 and hasattr(label, "item"):
        label, single = label.item(), True
    if not single or label.__hash__ is None:
        raise InputError(
            f"The label of sample {i} is {label!r}, not a single value (a text, a "
            "number, a truth value): give one label per sample; several labellings "
            "go into {grouping: labels}."
        )
    return str(label)


def _read(name: str, labels: Labels, missing: str) -> list[str]:
    """Return one grouping's labels as text, missing ones refused or renamed."""
    texts = label_texts(labels)
    absent = [i for i, text in enumerate(texts) if text in _MISSING_TEXTS]
    if absent and missing == "raise":
        raise InputError(
            f"Grouping '{name}': sample {absent[0]} has no label ({len(absent)} of "
            f"{len(texts)} have none); leave these people out, or pass "
            "missing='group' to watch them as a group of their own."
        )
    present = {text for text in texts if text not in _MISSING_TEXTS}
    if absent and MISSING in present:
        raise InputError(
            f"Grouping '{name}' has a group named '{MISSING}' and missing labels; "
            "rename the group."
        )
    if POOLED in present:
        raise InputError(
            f"Grouping '{name}': the label '{POOLED}' is the name of the pooled "
            "group; rename it."
        )
    for i in absent:
        texts[i] = MISSING
    return texts


def _indices(texts: list[str]) -> dict[str, Tensor]:
    """Return ``{group: sample indices}``, groups sorted by name."""
    samples: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        samples.setdefault(text, []).append(i)
    return {group: torch.tensor(samples[group]) for group in sorted(samples)}
