"""Faults under load: what scripts/chaos.py and scripts/soak.py are made of."""
