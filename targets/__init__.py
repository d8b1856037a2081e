"""What leaves the machine: the integer graph, its exporters, and the devices that run them.

This package is the bottom of the house: it imports no other kdpipe package and needs no torch.
"""
