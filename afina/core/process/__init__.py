"""This process among others: signals that end it (`interrupt`), the children that it starts (`children`), the errors
that nobody expected (`crash`), the standard files that it may lack (`standard`), where its user's files go (`homes`),
what it writes beside others that may be killed (`locks`, `temporary`), how the libraries under torch use the processor
and memory (`runtime`), and how threads wait for one another beside other programs (`neighbours`).

Signals, arguments and the environment come in; requests to stop, command lines and messages go out.
"""
