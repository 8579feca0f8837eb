"""What a run's names mean: layers, groups, quantities, keys; written beside it."""

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from spectral_mlops.records import POOLED
from spectral_mlops.tracking.metrics import SHORT, KeyNames
from spectral_mlops.tracking.shards import KINDS, SCHEMA_VERSION

_Q = "(?P<q>grad|act|adj)"
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        rf"erank_{_Q}\.(?P<n>\d+)/(?P<g>.+)",
        "effective rank of the {q} of group {g} at layer {n}; depends on group size",
    ),
    (
        rf"erank_{_Q}/(?P<g>.+)",
        "effective rank of the {q} of group {g}, mean over layers; depends on group "
        "size",
    ),
    (
        rf"norm_{_Q}/(?P<g>.+)",
        "Frobenius norm of the {q} of group {g} at scale mean, mean over layers",
    ),
    (
        rf"srank_{_Q}/(?P<g>.+)",
        "stable rank of the {q} of group {g}, mean over layers; depends on group size",
    ),
    (
        rf"lead_{_Q}/(?P<g>.+)",
        "share of the leading singular value in the {q} of group {g}, mean over layers",
    ),
    (
        rf"spectral/{_Q}_div",
        "divergence of the groups' {q} spectra on training batches, mean over layers; "
        "descriptive",
    ),
    (rf"spectral/{_Q}_div_max", "the same, at the layer where it is largest"),
    (r"spectral/nonfinite", "spectra of this epoch that are not finite"),
    (
        rf"div_{_Q}/(?P<n>\d+)_.+",
        "divergence of the groups' {q} spectra at layer {n} on training batches; "
        "descriptive",
    ),
    (
        rf"probe_{_Q}/(?P<n>\d+)_.+",
        "standardised divergence (z) of the {q} at layer {n} on the probe",
    ),
    (
        r"excess/(?P<w>.+)",
        "divergence of the {w} on training batches less the mean of its null, mean "
        "over layers; descriptive",
    ),
    (
        r"divergence/(?P<w>.+)",
        "z over layers of the {w}'s divergence on the probe: how detectable, not how "
        "large",
    ),
    (r"init/divergence_(?P<w>.+)", "the same at the untrained networks ({w})"),
    (
        r"final/(?P<w>.+)_sd_(?P<g>folds|seeds)",
        "SD of {w} over {g}: how much trainings vary, no evidence about people",
    ),
    (
        r"final/divergence_(?P<w>.+)",
        "z over layers of the {w}'s divergence on the probe, at the chosen checkpoints",
    ),
    (r"final/primary_p", "p of the primary outcome"),
    (
        r"final/additivity",
        "largest relative gap between the sum over groups and a parameter's gradient",
    ),
    (r"final/(?P<w>.+)", "{w} at the checkpoints chosen by validation loss"),
    (r"best/(?P<w>.+)", "best value of {w} over epochs"),
    (
        r"auc/(?P<w>.+)",
        "area under the curve of {w} over epochs, as its mean over those it has",
    ),
    (r"baseline/(?P<w>.+)", "of a simple model in the same folds: {w}"),
    (r"controls/(?P<w>.+)", "z of the primary outcome under the control {w}"),
    (
        r"train/loss",
        "mean loss of training people, mean over folds: nats, or, of a number, squared "
        "error in SDs of the target",
    ),
    (r"val/(?P<w>.+)", "{w} of validation people, mean over folds"),
    (r"val_loss/(?P<g>.+)", "mean loss of validation people of group {g}"),
    (
        r"val_r2/(?P<g>.+)",
        "coefficient of determination within group {g}, validation people of all folds",
    ),
    (
        r"val_mae/(?P<g>.+)",
        "mean absolute error of validation people of group {g}, units of the target",
    ),
    (
        r"val_pearson/(?P<g>.+)",
        "correlation of predicted and true within group {g}, validation people of all "
        "folds",
    ),
    (r"val_acc/(?P<g>.+)", "share of validation people of group {g} told rightly"),
    (
        r"val_auc/(?P<g>.+)",
        "area under the ROC curve within group {g}, validation people of all folds",
    ),
    (
        r"val_bacc/(?P<g>.+)",
        "balanced accuracy within group {g}, validation people of all folds",
    ),
    (
        r"val_recall/(?P<g>.+)",
        "share of validation people of group {g}, all of one class, told rightly",
    ),
    (r"cost/null_every", "every so many epochs labels were permuted"),
    (r"cost/tracking_s", "seconds of the training thread spent on tracking"),
    (r"cost/pending", "points and files that wait to be delivered"),
    (r"nonfinite/metrics", "metrics of this step that were not finite"),
)
_PATTERNS = [(re.compile(pattern), text) for pattern, text in _MEANINGS]
_WORDS = {short: quantity for quantity, short in SHORT.items()}


def meaning(key: str) -> str:
    """Say in a few words what a metric is; one that we do not make is the caller's."""
    for pattern, text in _PATTERNS:
        if found := pattern.fullmatch(key):
            words = found.groupdict()
            if "q" in words:
                words["q"] = _WORDS[words["q"]]
            return text.format(**words)
    return "logged by the caller"


def schema(
    names: KeyNames,
    quantities: Sequence[str],
    groups: Mapping[str, Mapping[str, int]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a run, as plain JSON.

    Args:
        names: Of the run's tracker.
        quantities: What is watched.
        groups: People per grouping and group.
        more: Whatever else belongs to the run as a whole.

    Returns:
        ``schema_version``, ``version``, ``profile``, ``quantities``, ``layers`` in
        depth order (``layer``, ``key``: None where it has none), ``groupings`` (each
        group's ``n`` and ``key``), ``keys`` with their meaning, ``dropped_keys``,
        ``tables``.
    """
    budget, known = names.budget, names.group_names
    return {
        "schema_version": SCHEMA_VERSION,
        "version": metadata.version("spectral-mlops"),
        "profile": budget.profile.name,
        "quantities": list(quantities),
        "pooled_group": POOLED,
        "layers": [
            {"layer": layer, "key": key} for layer, key in names.layer_keys.items()
        ],
        "groupings": {
            grouping: {
                group: {"n": n, "key": known.get((grouping, group))}
                for group, n in counts.items()
            }
            for grouping, counts in groups.items()
        },
        "keys": {key: meaning(key) for key in budget.chosen},
        "dropped_keys": list(budget.dropped),
        "tables": {kind: f"{kind}/part-*.parquet" for kind in KINDS},
        **(more or {}),
    }
