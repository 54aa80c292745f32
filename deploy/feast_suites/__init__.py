"""Feast's own universal test suites, run with our stores in place of its own, and with its own for comparison.

``docs/feast-suites.md`` says how to run them and what the last run gave. The tests are Feast's, and stay in its tree.
"""
