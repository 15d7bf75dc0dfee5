"""This process among others: signals that end it (`interrupt`), the children that it starts (`children`), the errors
that nobody expected (`crash`), the standard files that it may lack (`standard`), and where its user's files go
(`homes`).

Signals, arguments and the environment come in; requests to stop, command lines and messages go out.
"""
