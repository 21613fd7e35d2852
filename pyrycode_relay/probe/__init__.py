"""``pyrycode-relay-probe``: asks a relay, from outside, whether it does what it is for.

A program of its own, on a client library that is not the relay's. Nothing else imports it.
"""
