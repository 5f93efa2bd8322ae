"""The scene with jobs that share devices: two gangs alone, in turns, packed freely and through the gate; then one is protected.

scene.py     who plays and how long each phase lasts; values
measure.py   from the lines that ranks print to speeds, demands and losses; pure
gates.py     who holds a device now, read from its gate's page
show.py      a moment in the terminal, or as a line
story.py     the phases, in order
cast.py      the jobs on the stage: they come, are looked at, are asked to share, and leave
result.py    the closing table and the JSON
"""
