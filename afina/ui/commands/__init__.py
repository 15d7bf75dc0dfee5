"""How the result of each command is shown: a file for the word after `afina`, whose `VIEWS` are by the job's name.

A job without a view prints its result as JSON.
"""
