"""Whole meshes of real processes on loopback."""
