"""`python -m bench chaos`: how the system holds under load and faults, seen from outside.

A row starts real processes on loopback (`fleet`), calls them from a process of its own (`load`), does something to them
(a signal, a fault of the network: `proxy`) and reports what the callers saw. Only settings, signals, sockets and the
public contract are used.
"""
