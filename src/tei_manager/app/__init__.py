"""Wiring, life of the process, command line: the one package that sees every floor."""
