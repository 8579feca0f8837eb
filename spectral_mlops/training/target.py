"""The column that is predicted where it is a number, and what balances people."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from spectral_mlops.cohorts import Cohort
from spectral_mlops.config import RunConfig
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest
from spectral_mlops.training.task import THIRDS, Task

GROUPINGS = ("group", "sex", "site")
"""Columns whose groups are compared where the label column is what is predicted."""


def with_target(cohort: Cohort, config: RunConfig) -> Cohort:
    """Return the people with the target that the settings name.

    Args:
        cohort: As its loader read it, with a column of labels.
        config: All settings.

    Raises:
        InputError: If a class is wanted and the labels are numbers, or the reverse.
        UnknownNameError: If there is no such column.
    """
    named, columns = config.training.target, [str(x) for x in cohort.people.columns]
    if config.training.task == "classification":
        if cohort.numeric:
            raise InputError(
                f"{cohort.source}: the labels in '{cohort.target}' are numbers, and "
                "which of them counts as positive cannot be told; say so with "
                "positive=, or predict the number with training.task='regression'."
            )
        return cohort
    if named is None and not cohort.numeric:
        raise InputError(
            f"training.task='regression': the labels in '{cohort.target}' are groups; "
            "name the column of numbers to predict with training.target (--target): "
            f"{', '.join(columns)}."
        )
    if named is not None and named not in columns:
        raise UnknownNameError(
            f"training.target='{named}' is no column of the people of "
            f"{cohort.source}: choose from {', '.join(columns)}."
            f"{nearest(named, columns)}"
        )
    return replace(cohort, target=named or cohort.target, positive="")


def groupings_of(config: RunConfig, labels: Cohort, cohort: Cohort) -> tuple[str, ...]:
    """Return the columns whose groups are compared.

    Args:
        config: All settings.
        labels: As the loader read it.
        cohort: With the target of the run.

    Raises:
        InputError: If a numeric target is among them, or none is named and none found.
        UnknownNameError: If there is no such column.
    """
    people = cohort.people
    columns = [str(name) for name in people.columns]
    named = config.comparison.groupings
    if not named:
        wanted = (labels.target, *(GROUPINGS if cohort.numeric else ()))
        named = tuple(
            name
            for name in dict.fromkeys(wanted)
            if name in people
            and not (cohort.numeric and name == cohort.target)
            and people[name].nunique() > 1
        )[:1]
    if not named:
        raise InputError(
            f"'{cohort.target}' is predicted, and no column of groups was found: name "
            f"comparison.groupings (--groupings), of {', '.join(columns)}."
        )
    for name in named:
        if name not in columns:
            raise UnknownNameError(
                f"comparison.groupings names '{name}', which is no column of the "
                f"people of {cohort.source}: choose from {', '.join(columns)}."
                f"{nearest(name, columns)}"
            )
        if cohort.numeric and name == cohort.target:
            others = [x for x in columns if x != name]
            raise InputError(
                f"comparison.groupings names '{name}', which is the number predicted "
                f"and has no groups: choose from {', '.join(others)}."
            )
    return tuple(named)


def balanced(
    cohort: Cohort, task: Task, grouping: str, others: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the people, and the columns that probe and folds are balanced over.

    Classes and sites; of a number its thirds, the primary grouping's groups and sites.
    Thirds are of everybody, and decide nothing but who is drawn.

    Args:
        cohort: The people.
        task: Of the run.
        grouping: The primary one.
        others: Further columns, left out where absent.
    """
    if not cohort.numeric:
        return cohort.people, (cohort.target, *others)
    name = f"{cohort.target} thirds"
    thirds = [THIRDS[third] for third in task.strata(cohort.numbers)]
    return cohort.people.assign(**{name: thirds}), (name, grouping, *others)
