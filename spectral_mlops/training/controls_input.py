"""The inputs' own spectrum per group, under the relabellings of the outcome."""

from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.relabel import relabel
from spectral_mlops.spectra.batched import CHUNK_BYTES, cut, gram_floor, rows_of_group
from spectral_mlops.spectra.kept import KeptRows
from spectral_mlops.spectra.statistics import function_of_spectra


def input_comparisons(
    compressed: Tensor,
    people: dict[str, str],
    within: dict[str, str],
    *,
    rows: Literal["uncentred", "centred"],
    grouping: str,
    strata: str,
    families: list[str] | None = None,
    permutations: int,
    seed: int,
    divergence: str,
) -> list[Comparison]:
    """Compare the singular values of groups' input rows, network or not.

    Args:
        compressed: A row a person, shape ``[n, k]``, float64, whose Gram matrix is that
            of what the network is given (`HeldOut.compressed`).
        people: Group of each person by id, in the order of rows.
        within: Stratum of each person; labels never leave it.
        rows: As they are, as a first layer sees them, or less their group's mean
            (under relabelling the relabelled group's).
        grouping: Name of the groups.
        strata: What the strata are called.
        families: Family of each person, in the order of rows, if any are relatives.
        permutations: Relabellings beside the observed labels.
        seed: Of the relabellings.
        divergence: Name of the divergence.

    Returns:
        One comparison per pair of groups, with layer ``input``.
    """
    ids = sorted(people)
    at = {person: row for row, person in enumerate(people)}
    relabelled = relabel(
        {i: people[i] for i in ids},
        [within[i] for i in ids],
        permutations,
        seed,
        None if families is None else [families[at[i]] for i in ids],
    )
    codes = relabelled.codes
    order = torch.tensor([at[person] for person in ids])
    compressed = compressed[order]
    groups = sorted(set(people.values()))
    spectra = []
    for code in range(len(groups)):
        member = torch.from_numpy(codes == code)
        owner = torch.arange(len(ids))
        if rows == "centred":
            index = rows_of_group(owner, member)  # [P + 1, n_g], no -1
            spectra.append(_centred_values(compressed, index))
        else:
            spectra.append(KeptRows(compressed, owner).spectra(member))
    counts = np.bincount(codes[0], minlength=len(groups)).tolist()
    null = f"{relabelled.text} of {len(ids)} people"
    return [
        Comparison(
            layer="input",
            quantity="activation",
            grouping=grouping,
            group_a=groups[a],
            group_b=groups[b],
            divergence=divergence,
            values=function_of_spectra(divergence)(spectra[a], spectra[b]).numpy(),
            n_a=counts[a],
            n_b=counts[b],
            subjects_a=counts[a],
            subjects_b=counts[b],
            source="probe",
            null=null,
            strata=strata,
            valid_for="held-out people; no network",
            testable=True,
            reason="",
        )
        for a, b in combinations(range(len(groups)), 2)
    ]


def _centred_values(rows: Tensor, index: Tensor) -> Tensor:
    """Singular values of chosen rows less their mean, ``[P + 1, n_g]``.

    Under the floor of a Gram matrix they are zero, as rows may be roots of one.
    """
    found = []
    size = 8 * max(1, index.shape[1] * rows.shape[1])
    for part in index.split(max(1, CHUNK_BYTES // size)):
        chosen = rows[part]  # [P, n_g, k]
        centred = chosen - chosen.mean(1, keepdim=True)
        found.append(cut(torch.linalg.svdvals(centred), gram_floor(chosen)))
    return torch.cat(found)
