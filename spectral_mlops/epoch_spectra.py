"""What one epoch of training batches, or one pass of the probe, showed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import pandas as pd

from spectral_mlops.common_size import Subsampled, at_common_size, subsampled
from spectral_mlops.compare import Solved, Subject, compare
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.inference.comparison import Comparison, to_divergences
from spectral_mlops.inference.effects import detectable_of
from spectral_mlops.records import Divergence, EpochRecord, Spectrum, as_columns
from spectral_mlops.reformed import Reformed
from spectral_mlops.subjects import adjusted, subject_scalars
from spectral_mlops.validity import Families, Null, Observed, Strata

NULLS = ("auto", "reformed", "none")


class EpochSpectra:
    """What one epoch of training batches, or one pass of the probe, showed.

    Attributes:
        epoch: Counted from 0.
        source: ``train`` or ``probe``.
        spectra: One record per watched batch, layer, quantity and group.
        batches: Number of watched batches, of all ranks.
        reformed: Of a probe with ``adjoint="reformed"``: the null of loss gradients.
    """

    reformed: Reformed | None = None

    def __init__(
        self,
        epoch: int,
        source: str,
        spectra: list[Spectrum],
        batches: int,
        observed: list[Observed],
        strata: Strata,
        refused: str = "",
        families: Families | None = None,
    ) -> None:
        self.epoch = epoch
        self.source = source
        self.spectra = spectra
        self.batches = batches
        self._observed = observed
        self._strata = strata
        self._refused = refused
        self._families: Families = families or {}
        self._compared: list[Comparison] | None = None
        self._released = False

    def comparisons(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        relabel: Literal["pair", "everyone"] = "pair",
        null: str = "auto",
        weighting: str = "subjects",
    ) -> list[Comparison]:
        """The statistics behind `divergences`, under every relabelling.

        Folds that share a probe are averaged on these (`inference.comparison`).

        Args:
            permutations: Relabellings beside the observed labels; 0 for none.
            strata: ``"auto"`` (target, if not the grouping, and the monitor's
                strata), ``None``, or ``{name: {subject: stratum}}``; the monitor's
                families stay whole in any case.
            seed: Of the relabellings; the same people, labels, strata and seed
                give the same relabellings everywhere.
            divergence: Name of a divergence or of another statistic
                (`spectra.statistics.STATISTICS`).
            relabel: Whose labels move: the pair's people, or everyone's.
            null: See `divergences`.
            weighting: See `divergences`.

        Raises:
            CaptureError: If a null is asked for after `release`.
            InputError: If a name is unknown, or nothing was re-formed.
        """
        how = self._null(permutations, strata, seed, divergence, null, weighting)
        how = replace(how, everyone=relabel == "everyone")
        self._compared = self._compare(how)
        return self._compared

    def comparisons_by(
        self, statistics: Sequence[str], permutations: int = 199, seed: int = 0
    ) -> dict[str, list[Comparison]]:
        """`comparisons` by several statistics, everyone's labels moving together.

        Spectra under relabellings, which take nearly all of the time, are solved
        once for all of them.

        Args:
            statistics: Names; the first one is what `to_records` holds afterwards.
            permutations: See `comparisons`.
            seed: See `comparisons`.

        Returns:
            Of each statistic what `comparisons` gives with ``relabel="everyone"``.

        Raises:
            CaptureError: If a null is asked for after `release`.
            InputError: If a name is unknown, or none is given.
        """
        if not statistics:
            raise InputError("statistics=[]: name at least one statistic.")
        found: dict[str, list[Comparison]] = {}
        solved: Solved = {}
        for name in dict.fromkeys(statistics):
            how = self._null(permutations, "auto", seed, name)
            found[name] = self._compare(replace(how, everyone=True), solved)
        self._compared = found[statistics[0]]
        return found

    def omnibus(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """Whether any groups differ: the mean over pairs, everyone's labels moved.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: See `divergences`.

        Returns:
            The columns of `divergences`, one row per layer, quantity and grouping of
            three groups or more, with both groups ``*``; ``n_a`` and ``subjects_a``
            are those of the smallest group, ``n_b`` and ``subjects_b`` of the largest.
        """
        null = self._null(permutations, strata, seed, divergence, weighting=weighting)
        found = self._compare(replace(null, omnibus=True))
        columns = as_columns(to_divergences(found))
        return pd.DataFrame(columns, columns=[x.name for x in fields(Divergence)])

    def at_common_size(
        self,
        m: int | None = None,
        draws: int = 100,
        seed: int = 0,
        divergence: str = "js",
    ) -> pd.DataFrame:
        """Groups by random subsets of ``m`` of their people, for drawing side by side.

        Args:
            m: People per subset; half of the smallest group if not given.
            draws: Number of subsets.
            seed: Of the draws.
            divergence: Statistic of two spectra.

        Returns:
            See `common_size.at_common_size`: effective ranks and divergences with the
            quantiles of the subsets.
        """
        self._refuse_released()
        return at_common_size(
            self._observed, m, draws, seed, divergence, self._families
        )

    def subsampled(
        self,
        grouping: str,
        m: int | None = None,
        draws: int = 200,
        seed: int = 0,
        divergence: str = "js",
    ) -> Subsampled:
        """Divergence of ``m`` people per group, over subsamples; see there.

        Args:
            grouping: Whose groups.
            m: People per group; half of the smallest group if not given.
            draws: Number of subsamples.
            seed: Of the draws, and of the relabelled groups beside them.
            divergence: Statistic of two spectra.

        Returns:
            See `common_size.subsampled`.
        """
        self._refuse_released()
        return subsampled(
            self._observed,
            grouping,
            m,
            draws,
            self._strata,
            seed,
            divergence,
            self._families,
        )

    def per_subject(self) -> pd.DataFrame:
        """Each person's own gradient in two numbers (`subjects.subject_scalars`).

        Returns:
            Columns ``layer``, ``subject``, ``log_norm``, ``cosine``.
        """
        self._refuse_released()
        return subject_scalars(self._observed)

    def adjusted(
        self,
        grouping: str,
        nuisance: Mapping[str, Mapping[str, Any]],
        strata: Strata | None = None,
        permutations: int = 199,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare groups on `per_subject` with age, motion, site held.

        The target's own loss knows the labels: where the grouping is the target there
        is a p on a probe with margin adjoints alone.

        Args:
            grouping: Name of a grouping.
            nuisance: ``{name: {subject: value}}``, numbers or names.
            strata: ``{name: {subject: stratum}}`` that residuals stay within; the
                monitor's, and the target if it is not the grouping, if not given.
            permutations: Moves beside none.
            seed: Of the moves.

        Returns:
            See `subjects.adjusted`: a row per layer and scalar, with ``p_max`` over
            all of them.
        """
        self._refuse_released()
        if self._refused:
            raise InputError(f"adjusted: {self._refused}.")
        auto = strata is None
        return adjusted(
            self._observed,
            self.source,
            grouping,
            nuisance,
            self._strata if strata is None else strata,
            auto,
            permutations,
            seed,
            self._families,
        )

    @property
    def _subject(self) -> Subject:
        return Subject(
            self.spectra, self._observed, self.source, self.batches, self._refused
        )

    def _compare(self, null: Null, solved: Solved | None = None) -> list[Comparison]:
        """Compare, with adjoints re-formed where they were."""
        found = compare(self._subject, null, solved)
        if self.reformed is None or not self._observed:
            return found
        return self.reformed.in_place_of(found, self._observed[0].groupings, null)

    def _null(
        self,
        permutations: int,
        strata: str | Strata | None,
        seed: int,
        statistic: str,
        null: str = "auto",
        weighting: str = "subjects",
    ) -> Null:
        """Read how groups are to be compared."""
        if null not in NULLS:
            names = ", ".join(map(repr, NULLS))
            raise InputError(f"null='{null}': choose one of {names}.")
        permutations = 0 if null == "none" else permutations
        if permutations:
            self._refuse_released()
        if permutations and null == "reformed":
            self._refuse_not_reformed()
        chosen = self._strata if strata == "auto" else strata
        if isinstance(chosen, str):
            raise InputError(
                f"strata='{chosen}': pass 'auto', None or "
                "{name: {subject: stratum}}."
            )
        by_target = strata == "auto"
        return Null(
            permutations,
            chosen or {},
            by_target,
            seed,
            statistic,
            weighting=weighting,
            families=self._families,
        )

    def _refuse_not_reformed(self) -> None:
        if self.reformed is None:
            raise InputError(
                "null='reformed' is of a probe passed with adjoint='reformed' and a "
                "loss_function, which this result is not: choose null='auto'."
            )
        groupings = self._observed[0].groupings if self._observed else {}
        if not any(map(self.reformed.class_of, groupings.values())):
            raise InputError(
                "null='reformed' moves the target's labels, and no grouping is the "
                f"target (there is {', '.join(groupings)}): choose null='auto'."
            )

    def _refuse_released(self) -> None:
        if self._released:
            raise CaptureError(
                "The factors that a null needs were released (tracker.log does that): "
                "call divergences() before logging."
            )

    def divergences(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        null: str = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """How far groups are apart at each layer, with what a p may mean.

        With a null, ``value`` is the mean over the batches that the null is about
        (all of the probe; ``null_batches`` of a training epoch), people weighted by
        ``weighting``; without one, over all watched batches, whose recorded spectra
        are of the rows as they are.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            null: ``"auto"``: subjects are relabelled where factors were kept, and where
                they were passed with ``adjoint="reformed"`` and the grouping is the
                target, gradients and adjoints are those of the moved labels;
                ``"reformed"``: the same, and an error where nothing was re-formed;
                ``"none"``.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: ``"subjects"``: each person weighs the same, a row 1/(rows of its
                person at that layer); ``"rows"``: each row, as ``valid_for`` then says.

        Returns:
            One row per layer, quantity and pair of groups, with the columns of
            `records.Divergence`.
        """
        found = self.comparisons(
            permutations, strata, seed, divergence, null=null, weighting=weighting
        )
        return pd.DataFrame(as_columns(to_divergences(found)))

    def detectable(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """What each comparison could have shown: to stand beside a large p.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: See `divergences`.

        Returns:
            One row per layer, quantity and pair of groups: ``value`` as observed,
            ``critical`` (what p ≤ .05 takes) and ``smallest_detectable`` (what would
            have reached that with 80 % power), all in units of the divergence, and
            ``reason`` where there is none (`effects.smallest_detectable`).
        """
        null = self._null(permutations, strata, seed, divergence, weighting=weighting)
        return pd.DataFrame(detectable_of(self._compare(null)))  # recorded ones stay

    def to_frame(self) -> pd.DataFrame:
        """One tidy row per spectrum: its fields, and a column per summary.

        Norms are at scale ``batch``. ``values`` holds the singular values.
        """
        frame = pd.DataFrame(as_columns(self.spectra))
        frame.insert(0, "epoch", self.epoch)
        frame.insert(1, "source", self.source)
        return frame

    def to_records(self) -> list[EpochRecord]:
        """What a tracker stores: the spectra, and the divergences last computed.

        Where none were computed, they are formed without a null.
        """
        if self._compared is None:
            self.comparisons(permutations=0)
        assert self._compared is not None
        rows = tuple(to_divergences(self._compared))
        return [EpochRecord(self.epoch, self.source, tuple(self.spectra), rows)]

    def release(self) -> None:
        """Free the factors kept for the null; called by ``tracker.log``."""
        if self._compared is None:
            self.comparisons(permutations=0)
        self._observed, self._released, self.reformed = [], True, None
