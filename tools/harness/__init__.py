"""Shared by the tools: command line, figures, timing, /proc and /metrics of a server, small models."""
