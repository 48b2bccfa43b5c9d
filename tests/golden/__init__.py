"""What every released version has written, kept for good, and today's code that must read it.

README.md says what is here and what to do when a test fails.
"""
