"""Data in, numbers out: matching answers. Nothing here imports torch."""
