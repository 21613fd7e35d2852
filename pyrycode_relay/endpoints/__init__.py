"""The two legs: what a binary's and a phone's connection do with the registry."""
