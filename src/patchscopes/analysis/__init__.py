"""Data in, numbers out: matching, scores, intervals, tests, selection. A library of its own; knows no torch."""
