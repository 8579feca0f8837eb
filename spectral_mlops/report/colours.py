"""Colours that colour-blind people tell apart, the same for a group everywhere."""

from collections.abc import Iterable, Mapping

GROUP_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6A3D9A",
)
"""Okabe and Ito's, its yellow, which white swallows, replaced by a violet."""
DASHES = ("solid", "dash", "dot")
"""Groups beyond the number of colours begin again with another stroke."""
POOLED_COLOUR = "#4D4D4D"


def group_styles(
    groupings: Mapping[str, Iterable[str]],
) -> dict[str, dict[str, tuple[str, str]]]:
    """Give each group a colour and a stroke; no two share both up to 21 groups.

    Args:
        groupings: Grouping to its groups, in a fixed order.

    Returns:
        Grouping to group to ``(colour, stroke)``.
    """
    styles: dict[str, dict[str, tuple[str, str]]] = {}
    number = 0
    for grouping, groups in groupings.items():
        styles[grouping] = {}
        for group in groups:
            colour = GROUP_COLOURS[number % len(GROUP_COLOURS)]
            dash = DASHES[number // len(GROUP_COLOURS) % len(DASHES)]
            styles[grouping][group] = (colour, dash)
            number += 1
    return styles
