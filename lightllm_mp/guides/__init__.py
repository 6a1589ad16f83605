"""Constrained answers: guides become grammars, grammars become matchers, matchers say which token may come next.

The engine behind it is llguidance (docs/performance.md says why).
"""
