"""Runners: the machines on which apps live."""
