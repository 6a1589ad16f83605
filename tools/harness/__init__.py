"""What the tools share: their command line, figures, timing, /proc and /metrics of a server, small models."""
