"""One agent per node: starts, watches and ends the processes of jobs, and tells the controller what it saw.

    loop       the agent itself: commands in, events out
    workers    the ranks and twins that live here, and what is known of each
    channel    the Unix socket that ranks talk to
    proposals  the switch step in the pages of old ranks; progress read from them
    nursery    the process that forks warm ranks and outlives the agent; children, bootstrap and store are its parts
    client     the agent's line to the nursery
    devices, network, environment, folders, logs, events   one small thing each

Nothing here imports torch or Ray except in processes that the nursery forks, and in the nursery itself.
"""
