"""``pyrycode-relay-probe``: asks a relay, from outside, whether it does what it is for.

A program of its own, on a client library that does not share the relay's code. Nothing else
imports it.
"""
