"""What is timed.

material     rows of words, models at random, replacement paths
plain_rival  joint ELECTRA as scripts write it with transformers
contestant   a case with a run's own modules and engine
"""
