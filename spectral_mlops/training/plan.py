"""What is settled and checked before the first step, and before anything is written.

The people, who is set aside, the folds, the model's settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts import (
    Adjustment,
    Cohort,
    Fold,
    Probe,
    check_adjustment,
    check_apart,
    check_cohort,
    check_unseen,
    fold_splits,
    inputs_of,
    layout_for,
    load_cohort,
    reuse_splits,
    set_probe_aside,
    site_splits,
    site_warning,
)
from spectral_mlops.cohorts.families import families_of
from spectral_mlops.config import Layout, RunConfig, merge, validate
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.models import check_built, check_model, model_entry
from spectral_mlops.records import QUANTITIES, Quantity, check_quantities
from spectral_mlops.registry import nearest
from spectral_mlops.schedule import NullEpochs, evenly_spaced
from spectral_mlops.spectra.statistics import function_of_spectra
from spectral_mlops.training.target import balanced, groupings_of, with_target
from spectral_mlops.training.task import Task, task_of

NONE = "n/a"
MIXING = (
    "Batch normalisation mixes the people of a batch: groups' gradients add up, but "
    "each is split by whose row it comes from, and a row depends on the others; model "
    "norm='layer' or 'group' keeps people apart."
)
STRATA = ("site",)
"""Columns that splits are balanced over and labels move within, where present."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One run, ready to start.

    Attributes:
        config: All settings, those left to defaults filled in.
        cohort: The people.
        classes: Labels of the target in the order of the model's outputs; of two,
            the positive one is second; none of a number.
        groupings: Columns whose groups are watched; the first is the primary one.
        probe: Held-out people, or ``None`` where the cohort is too small.
        probe_note: What the probe holds, or why there is none.
        folds: Training and validation people of each fold.

    Raises:
        InputError: If the probe holds people of a fold.
    """

    config: RunConfig
    cohort: Cohort
    classes: tuple[str, ...]
    groupings: tuple[str, ...]
    probe: Probe | None
    probe_note: str
    folds: tuple[Fold, ...]

    def __post_init__(self) -> None:
        check_apart(self.probe, self.folds)

    @cached_property
    def task(self) -> Task:
        """What is learned."""
        return task_of(self.config.training, len(self.classes))

    @property
    def primary(self) -> str:
        """The grouping that headline numbers are about."""
        return self.groupings[0]

    @property
    def layout(self) -> Layout:
        """How the network takes the features."""
        model = self.config.model.name
        return layout_for(self.cohort, model_entry(model).takes, model)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is watched."""
        return check_quantities(self.config.spectra.quantities)

    @property
    def compared(self) -> str:
        """The primary grouping's groups, in words."""
        groups = sorted(set(self._columns[self.primary].tolist()))
        if len(groups) == 2:
            return f"{groups[0]} and {groups[1]}"
        return f"the {len(groups)} groups of {self.primary}"

    @property
    def primary_quantity(self) -> Quantity:
        """The quantity of the primary outcome: as declared, adjoint if not."""
        declared = self.config.comparison.primary_quantity
        return declared or _default_quantity(self.quantities)

    @property
    def notes(self) -> list[str]:
        """What the user should be told before training starts."""
        fold_notes = dict.fromkeys(fold.note for fold in self.folds if fold.note)
        outcome = []
        if self.cohort.numeric:
            mean, sd = self.targets.mean(), self.targets.std()
            outcome.append(
                f"Predicted: '{self.cohort.target}', a number, {mean:.4g} ± {sd:.4g}."
            )
        if self.probe is not None:
            outcome.append(
                f"Primary outcome: {self.primary_quantity} between {self.compared} on "
                "the probe, at the checkpoints chosen by validation loss "
                f"({self.config.comparison.divergence}, all layers together)."
            )
        about = self.primary if self.cohort.numeric else self.cohort.target
        warning = site_warning(self.cohort.people, about, *STRATA)
        mixing = self.config.model.settings.get("norm") == "batch"
        warnings = [*([warning] if warning else []), *([MIXING] if mixing else [])]
        return [*self.cohort.notes, *warnings, self.probe_note, *outcome, *fold_notes]

    @cached_property
    def targets(self) -> NDArray[Any]:
        """Class number, or number, of every person, in the cohort's order."""
        if self.cohort.numeric:
            return self.cohort.numbers
        numbers = {label: i for i, label in enumerate(self.classes)}
        return np.array([numbers[str(x)] for x in self.cohort.labels], dtype=np.int64)

    @cached_property
    def target_strata(self) -> NDArray[np.int64]:
        """What other labels stay within: the target's classes, or thirds."""
        return self.task.strata(self.targets)

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.str_]]:
        """Label of every person per column that groups or strata need."""
        people = self.cohort.people
        wanted = {*self.groupings, *(name for name in STRATA if name in people)}
        return {
            name: np.array([str(x) for x in people[name].astype(object).fillna(NONE)])
            for name in wanted
        }

    def adjustment(self, rows: NDArray[np.intp]) -> Adjustment:
        """Fit what is taken out of features before they are scaled.

        Args:
            rows: Of training people.
        """
        settings = self.config.confounds
        return Adjustment.fit(self.cohort, rows, settings.regress, settings.harmonise)

    def labels(self, rows: NDArray[np.intp]) -> dict[str, list[str]]:
        """Group labels of some people per grouping, by position."""
        return {name: self._columns[name][rows].tolist() for name in self.groupings}

    def strata(self) -> dict[str, dict[str, str]]:
        """What labels move within, ``{column: {person: stratum}}``."""
        ids = [str(who) for who in self.cohort.people.index]
        return {
            name: dict(zip(ids, self._columns[name].tolist(), strict=True))
            for name in STRATA
            if name in self._columns and len(set(self._columns[name])) > 1
        }

    @cached_property
    def families(self) -> dict[str, str]:
        """Family of every person, ``{person: family}``; empty without relatives."""
        found = families_of(self.cohort.people)
        return {} if found is None else {str(who): str(x) for who, x in found.items()}

    def null_epochs(self) -> NullEpochs:
        """Which epochs have a null: as many as the settings say, or as time allows."""
        epochs, settings = self.config.training.epochs, self.config.comparison
        if settings.null_epochs is None:
            return NullEpochs(epochs, settings.null_budget)
        spaced = evenly_spaced(settings.null_epochs, epochs)
        last = epochs - 1  # it is always one of them
        return NullEpochs(epochs, 0.0, fixed=[last - epoch for epoch in spaced])


def make_plan(
    config: RunConfig,
    workdir: Path,
    progress: Callable[[str, int, int], None] | None = None,
    splits: Path | None = None,
) -> Plan:
    """Load the people and settle the run.

    Args:
        config: All settings.
        workdir: Folder that relative paths of the config start from.
        progress: Told ``(what, done, total)`` on long work.
        splits: Folder of splits to use whatever the settings say: those of a run that
            goes on.

    Returns:
        The plan.

    Raises:
        InputError: If settings, files or people cannot be used.
        UnknownNameError: If a name is in no registry or table.
    """
    model = check_model(config.model)
    function_of_spectra(config.comparison.divergence)
    labelled = load_cohort(config.cohort, workdir, progress)
    for run in () if splits else config.training.unseen_by:
        check_unseen(labelled.people.index, workdir / run)
    cohort = with_target(labelled, config)
    task = task_of(config.training, len(cohort.groups))
    takes = model_entry(config.model.name).takes
    layout = layout_for(cohort, takes, config.model.name)
    check_built(config.model, inputs_of(cohort, layout), task.outputs)
    groupings = groupings_of(config, labelled, cohort)
    columns = [str(name) for name in cohort.people.columns]
    declared, watched = config.comparison.primary_quantity, config.spectra.quantities
    if declared and watched and declared not in watched:
        raise InputError(
            f"comparison.primary_quantity='{declared}' is not watched: choose from "
            f"spectra.quantities ({', '.join(watched)}), or add it there."
        )
    for name in config.controls.nuisance_columns:
        if name not in columns:
            raise UnknownNameError(
                f"controls.nuisance_columns names '{name}', which is no column of the "
                f"people: choose from {', '.join(columns)}.{nearest(name, columns)}"
            )
    probe, note, folds = _splits(config, cohort, groupings[0], splits, workdir)
    if probe is None and config.controls.run:
        raise InputError(
            f"--controls (controls.run) holds the probe against controls. {note}"
        )
    _check_spread(cohort, folds)
    aside = probe.ids if probe else ()
    check_adjustment(
        cohort,
        config.confounds.regress,
        config.confounds.harmonise,
        [(fold.train_ids, (*fold.validation_ids, *aside)) for fold in folds],
    )
    positive = cohort.positive
    classes = sorted(cohort.groups, key=lambda label: (label == positive, label))
    settings = {
        "cohort": {"settings": check_cohort(config.cohort).model_dump(mode="json")},
        "model": {"settings": model.model_dump(mode="json")},
        "spectra": {"quantities": config.spectra.quantities or QUANTITIES},
        "comparison": {
            "groupings": groupings,
            "primary_quantity": declared or _default_quantity(watched or QUANTITIES),
        },
    }
    resolved = merge(config.model_dump(mode="json"), settings)
    config = validate(RunConfig, resolved, "resolved settings")
    return Plan(config, cohort, tuple(classes), groupings, probe, note, tuple(folds))


def draw_folds(
    config: RunConfig, cohort: Cohort, probe: Probe | None, grouping: str
) -> list[Fold]:
    """Draw the folds that the settings ask for, outside the probe."""
    settings = config.training
    people, strata = strata_of(config, cohort, grouping)
    if settings.split == "site":
        if settings.repeats > 1:
            raise InputError(
                f"training.repeats={settings.repeats}: training.split='site' leaves "
                "each site out once, and nothing in it is drawn; leave repeats out."
            )
        classes = None if cohort.numeric else cohort.target
        return site_splits(people, classes, *STRATA, probe)
    return fold_splits(
        people,
        settings.folds,
        settings.seed,
        strata=strata,
        probe=probe,
        repeats=settings.repeats,
    )


def strata_of(
    config: RunConfig, cohort: Cohort, grouping: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the people, and the columns that probe and folds are balanced over."""
    task = task_of(config.training, len(cohort.groups))
    return balanced(cohort, task, grouping, STRATA)


def _check_spread(cohort: Cohort, folds: Sequence[Fold]) -> None:
    """Refuse a fold whose training people all have one number."""
    for number, fold in enumerate(folds if cohort.numeric else ()):
        found = cohort.numbers[cohort.rows(fold.train_ids)]
        if np.ptp(found) == 0:
            raise InputError(
                f"Fold {number}: everyone in training has {cohort.target}="
                f"{found[0]:g}; a network cannot learn what does not vary."
            )


def _splits(
    config: RunConfig,
    cohort: Cohort,
    grouping: str,
    given: Path | None,
    workdir: Path,
) -> tuple[Probe | None, str, list[Fold]]:
    """Return the probe, what to say of it, and the folds: read, or drawn."""
    chosen = config.training.splits
    folder = given or (workdir / chosen if chosen else None)
    if folder is None:
        people, strata = strata_of(config, cohort, grouping)
        probe, note = set_probe_aside(
            people,
            grouping,
            config.comparison.probe_fraction,
            strata=strata,
            seed=config.comparison.probe_seed,
        )
        return probe, note, draw_folds(config, cohort, probe, grouping)
    classes = None if cohort.numeric else cohort.target
    probe, folds = reuse_splits(folder, cohort.people, classes)
    held = f"a probe of {len(probe.ids)} people" if probe else "no probe"
    return probe, f"Splits of {folder}: {held}, {len(folds)} folds.", folds


def _default_quantity(watched: Sequence[Quantity]) -> Quantity:
    """Return what is compared if nothing was declared.

    The margin's adjoint, like the activations, knows no labels, and found planted
    differences up to six times as often (``experiments/power``).
    """
    preferred: tuple[Quantity, ...] = ("adjoint", "activation", "gradient")
    return next(quantity for quantity in preferred if quantity in watched)
