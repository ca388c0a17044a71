"""Embedded data sets and their judges, for recipes, tests and a first look.

Nothing else in mmjax knows them: a person's own data take their place without a trace.
"""
