"""Maps that walk away while the picture stays: rows and frames of an animation and of a page with a slider.

`PYTHONPATH=tests python -m slider` draws both again from what is stored under figures/slider/; what is not stored is
computed first (a quarter of an hour on one free core for all of it).
"""
