"""Trials whose worker died: failed, and tried again with the same settings.

The one who finds a silent ticket takes it over first, and gives it back or spends it
last; whoever dies in between leaves a silent ticket again. So nothing is lost or
counted twice, at whatever moment processes are killed.
"""

import time
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.sweeps.tickets import Hold, Ticket, Tickets

RETRIES = 2
"""A trial that takes its worker with it so often is left alone."""
INTERRUPTED = "interrupted"
"""Error of a trial that somebody stopped: its ticket is taken again."""
DIED = "its worker died"


def mend(study: optuna.Study, tickets: Tickets) -> list[str]:
    """Bring back what dead workers left; any worker may, at any time.

    Args:
        study: Any.
        tickets: Its.

    Returns:
        What was mended, one sentence each.
    """
    done = [
        _settle(study, ticket, hold)
        for ticket in tickets.silent(tickets.grace)
        if (hold := tickets.claim(ticket)) is not None
    ]
    for trial in _never_begun(study, tickets):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        _retry(study, trial)
        done.append(f"trial {trial.number}: {DIED} before it began; FAIL")
    return done


def why_failed(trial: FrozenTrial) -> str | None:
    """Return why a trial failed; ``None`` if it did not."""
    if trial.state != TrialState.FAIL:
        return None
    return str(trial.user_attrs.get("error", DIED))


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that tickets were spent for: each wanted one has one.

    Those that ended, but for the ones that were interrupted or tried again.
    """
    known = list(trials)
    again = {trial.user_attrs.get("retry_of") for trial in known}
    return [
        trial
        for trial in known
        if trial.state.is_finished()
        and trial.number not in again
        and trial.user_attrs.get("error") != INTERRUPTED
    ]


def _settle(study: optuna.Study, ticket: Ticket, hold: Hold) -> str:
    """Give back or spend the ticket of a dead worker."""
    if ticket.trial is None:
        hold.give_back()
        return f"ticket {ticket.number}: {DIED} before it had a trial; free again"
    study.tell(ticket.trial, state=TrialState.FAIL, skip_if_finished=True)
    trial = study.get_trials(deepcopy=False)[ticket.trial]
    why = why_failed(trial)
    if why == INTERRUPTED or (why == DIED and _retry(study, trial)):
        hold.give_back()
        return f"trial {trial.number}: {why}; another takes its place"
    hold.spend()
    return f"trial {trial.number}: {trial.state.name}, and {DIED} with its ticket"


def _retry(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Put a clean copy in the queue; tell whether there is one.

    Optuna's own callback copies everything, and a constraint or a run of the dead
    attempt would stand for the new one.
    """
    before = int(trial.user_attrs.get("retries", 0))
    known = study.get_trials(deepcopy=False)
    if any(other.user_attrs.get("retry_of") == trial.number for other in known):
        return True
    if before >= RETRIES:
        return False
    fixed = {k: v for k, v in trial.system_attrs.items() if k == "fixed_params"}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"retry_of": trial.number, "retries": before + 1},
            system_attrs=fixed,
        )
    )
    return True


def _never_begun(study: optuna.Study, tickets: Tickets) -> list[FrozenTrial]:
    """Find running trials of processes that died in the moment after asking.

    A trial of a process that lives has a unique id at once, and its ticket names it.
    """
    running = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if "uid" not in trial.user_attrs
        and trial.datetime_start is not None
        and time.time() - trial.datetime_start.timestamp() > tickets.grace
    ]
    bound = tickets.bound() if running else set()
    return [trial for trial in running if trial.number not in bound]
