"""This process among others: signals that end it (`interrupt`), and the children that it starts (`children`).

Signals and arguments come in; requests to stop and command lines go out.
"""
