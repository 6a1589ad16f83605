"""The parts of tools.fuzz.run. tests/fuzz runs the targets too."""
