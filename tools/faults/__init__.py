"""Faults and floods: how a server behaves when its processes fail and when it gets far too many requests."""
