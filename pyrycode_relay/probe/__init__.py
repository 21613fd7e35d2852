"""``pyrycode-relay-probe``: a program that tests a relay from outside, end to end.

It uses a client library that shares no code with the relay. No other module imports it.
"""
