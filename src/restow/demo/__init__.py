"""The demo: a scattered gang is found and moved, live, onto one machine, and loses nothing.

scene.py      who plays: the machines, the jobs and their commands; values
stage.py      what they play on: a lab, a cluster in it, a private folder; takes everything down
watch.py      asks the controller how things are, a few times a second
timeline.py   what was seen, as values: speeds, who sat where and when
story.py      the acts, in order
alone.py      the same gang, never moved, and whether the numbers agree
show.py       a moment as a picture in the terminal, or as plain lines
picture.py    the timeline as PNG or SVG
result.py     the closing table and the JSON
"""
