"""How many keys a run has, and how many points a key: charts freeze on more.

A page of charts loads every key of every run shown, and a store keeps every point; so
both have hard caps. Records are never thinned: they lie in files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spectral_mlops.registry import Registry
from spectral_mlops.tracking.measures import MEASURES

Family = Literal["own", "summary", "groups", "layers", "focus"]

_ALL_CURVES = [curve for one in MEASURES.values() for curve in one.groups]

COSTS = ("cost/tracking_s", "cost/pending")
"""Keys of trackers themselves; every run has room for them."""
DENSE = 0.8
"""Share of a key's points that stand step by step where the run's length is unknown."""
STRETCH = 1.15
"""After those, every point is at least so many times as far as the one before it."""
NAMED = 20
"""Names of dropped keys in the run's tag; ``schema.json`` has all."""


@dataclass(frozen=True)
class Profile:
    """What a run may have in charts.

    Attributes:
        name: As in the setting ``tracking.profile``.
        keys: Of the whole run, at most.
        points: Of one key, at most.
        summary: Keys for means over layers, ``spectral/`` and ``excess/``.
        groups: Keys for summaries of each group's spectra.
        details: Keys for groups and single layers together; layers take what groups
            leave.
        focus: Keys for single layers' effective ranks per group.
        charted_groups: Groups with performance keys of their own: the largest.
        group_curves: What those are, of those that a run's task has.
        images: Steps at which each image is drawn, at most.

    What is left of ``keys`` is the user's own, and cannot be taken by the others.
    """

    name: str
    keys: int
    points: int
    summary: int
    groups: int = 0
    details: int = 0
    focus: int = 0
    charted_groups: int = 6
    group_curves: tuple[str, ...] = tuple(dict.fromkeys(_ALL_CURVES))
    images: int = 0

    def room(self, family: Family) -> int:
        """Return how many keys a family of derived ones may have."""
        rooms = {
            "summary": self.summary,
            "groups": self.groups,
            "layers": self.details,
            "focus": self.focus,
        }
        return rooms.get(family, self.keys)


PROFILES: Registry[str, Profile] = Registry("profile")
SWEEP = Profile(
    "sweep", 40, 100, summary=7, charted_groups=2, group_curves=("auc", "recall", "r2")
)
STANDARD = Profile("standard", 150, 300, summary=10, groups=40, details=70, images=12)
FULL = Profile(
    "full", 250, 300, summary=10, groups=60, details=120, focus=40, images=12
)
for _profile in (SWEEP, STANDARD, FULL):
    PROFILES.register(_profile.name)(_profile)


@dataclass
class KeyBudget:
    """Which keys and which of their points a run has; settled as they first appear.

    A key that was chosen stays chosen, and one that was dropped stays dropped, so a
    curve is whole or not there. The order of appearance decides, and nothing else:
    the same run has the same keys.

    Attributes:
        profile: Of the run.
        epochs: How long the run will be, if that is known.
        chosen: Keys that are sent, and the family each was counted in.
        dropped: Keys that are not, in the order they were wanted.
    """

    profile: Profile = STANDARD
    epochs: int | None = None
    chosen: dict[str, str] = field(default_factory=lambda: dict.fromkeys(COSTS, "own"))
    dropped: dict[str, None] = field(default_factory=dict)
    _sent: dict[str, set[int]] = field(default_factory=dict)  # steps of points

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "KeyBudget":
        """Return a budget that goes on as the one did that gave the state."""
        return cls(
            PROFILES.get(state["profile"]),
            state["epochs"],
            dict(state["chosen"]),
            dict.fromkeys(state["dropped"]),
        )

    def state(self) -> dict[str, Any]:
        """Return the choice as plain JSON."""
        return {
            "profile": self.profile.name,
            "epochs": self.epochs,
            "chosen": dict(self.chosen),
            "dropped": list(self.dropped),
        }

    def left(self, family: Family) -> int:
        """Return how many more keys a family may have."""
        known = list(self.chosen.values())
        counted = known.count(family)
        if family == "layers":
            counted += known.count("groups")
        free = self.profile.keys - len(known)
        return max(0, min(free, self.profile.room(family) - counted))

    def fit(self, family: Family, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics whose keys are chosen, or can be now.

        Derived keys of one section (what stands before the last slash) are chosen
        together or not at all: half of the groups in a chart mislead. The user's own
        are chosen one by one.
        """
        wanted: dict[str, list[str]] = {}
        for key in metrics:
            if key not in self.chosen and key not in self.dropped:
                section = (
                    key if family in ("own", "summary") else key.rpartition("/")[0]
                )
                wanted.setdefault(section, []).append(key)
        for keys in wanted.values():
            if len(keys) <= self.left(family):
                self.chosen |= dict.fromkeys(keys, family)
            else:
                self.dropped |= dict.fromkeys(keys)
        return {key: value for key, value in metrics.items() if key in self.chosen}

    def due(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the metrics whose points are sent at a step, and count them."""
        kept = {key: x for key, x in metrics.items() if self._is_due(key, step)}
        self.count((key, step) for key in kept)
        return kept

    def count(self, points: Iterable[tuple[str, int]]) -> None:
        """Take into account points that were sent, by this process or before."""
        for key, step in points:
            self._sent.setdefault(key, set()).add(step)

    def _is_due(self, key: str, step: int) -> bool:
        """Return whether a key's point at a step is sent.

        Of a run of T epochs every ``ceil(T / points)``-th is, the last among them. A
        key that comes more rarely has its points in between too, as long as there is
        room for all that may come. The untrained network (step -1) has a point always.
        """
        points, sent = self.profile.points, self._sent.get(key, set())
        if step in sent:
            return True
        if self.epochs is None:
            few = len(sent) < DENSE * points
            return few or (len(sent) < points and step >= STRETCH * max(sent))
        if step < 0 and not sent:
            return True
        every = -(-self.epochs // points)
        left = max(0, self.epochs - 1 - step)
        after = -(-left // every)  # points of the grid that are still to come
        if len(sent) + 1 + after > points:
            return False
        return left % every == 0 or not sent or step - max(sent) >= every

    def note(self) -> str:
        """Say which keys were dropped; empty if none."""
        if not self.dropped:
            return ""
        names = ", ".join(list(self.dropped)[:NAMED])
        more = ", …" if len(self.dropped) > NAMED else ""
        return f"{len(self.dropped)} ({names}{more}); all in schema.json"
