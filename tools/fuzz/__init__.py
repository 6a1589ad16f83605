"""What tools.fuzz.run is made of. The targets are run by the tests too (tests/fuzz)."""
