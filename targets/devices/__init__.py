"""Devices and emulators on which an exported artifact is run and measured."""
