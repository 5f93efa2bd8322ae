"""The training scripts that are moved: `plain.py` knows of no moves, the others differ from it by what their system asks for."""
