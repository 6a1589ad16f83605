"""Faults and floods: what a server does when its processes fail, and when far too much is asked of it."""
