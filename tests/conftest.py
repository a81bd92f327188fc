"""Fixtures of our own suite."""

pytest_plugins = ["pytester"]
