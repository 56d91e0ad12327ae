"""Answers for questions that mean the same, only as far as it was measured how often that is wrong."""
