"""Callbacks that monitor training."""
