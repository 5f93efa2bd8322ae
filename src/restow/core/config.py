"""How long the core waits for what. Numbers with their reasons; nothing here reads a file."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES_MAX = 10  # a script that ends itself at the same step every time is not brought back for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Time-outs in seconds. They only end what hangs: a process that dies is reported at once and waits for none of them."""

    start_s: float = 120.0  # a warm process needs 10 ms; a cold one imports torch from a slow disk and then the script
    standby_s: float = 120.0  # the twin builds the model, compiles, and makes one rehearsal step
    connect_s: float = 30.0  # full mesh of 32 ranks: 0.15 s; a lost SYN is repeated after 1, 3 and 7 s
    shadow_s: float = 120.0  # 1 GB at 200 Mbit/s is 40 s; three of them
    propose_s: float = 10.0  # agents answer from shared memory; ten times the silence that loses a node
    propose_ahead_s: float = 0.3  # a proposal must reach every agent before its step: 0.1 s seen on a busy lab
    propose_ahead_steps: int = 3  # for long steps: never the step that is being made
    progress_age_s_max: float = 1.0  # reports come twice a second; older ones say nothing about now
    proposals_max: int = 8  # each doubles the lead: 0.3 s becomes 38 s; then something else is wrong
    keep_s: float = 60.0  # survivors put their state into the vault: a step to its end, and 10 GB at 200 MB/s to a slow memory
    rescue_s: float = 180.0  # the ranks themselves wait 120 s for a word of everybody; then their verdict is there
    linger_s: float = 60.0  # a twin that was abandoned and never heard of again is taken for gone
    away_s: float = 60.0  # a job on a lost node is waited for, before it goes on elsewhere from a checkpoint that is there
    gone_s: float = 600.0  # nodes that took all that is left of a rank with them, where there is no checkpoint: a switch restarts
    checkpoint_s: float = 3600.0  # one that is not written by then is given up (a folder that hangs); 10 GB at 3 MB/s
    move_vault_s: float = 3600.0  # likewise, for the state of a suspended job that leaves a drained node
    hung_s: float = 15.0  # for all ranks of a gang that stands still to be noticed: agents look each second, ranks answer within 5
    slow_s: float = 30.0  # a rank is slower than its peers for so long before it counts
    unready_s: float = 30.0  # a script that said nothing through the SDK for that long does not use it
    first_steps_s: float = 600.0  # one that speaks but has not finished its first steps (a big model loads)
    back_off_s: float = 30.0  # after a failed move; doubled with each further failure in a row
    back_off_s_max: float = 3600.0
    losses_max: int = LOSSES_MAX  # in a row without a step in between; after more of them a job is not brought back
    wishes_max: int = 3  # failed attempts after which a person's MigrateAsked is given up
