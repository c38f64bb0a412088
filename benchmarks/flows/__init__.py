"""The sections of benchmarks/flows.py."""
