"""The endpoints: a binary's and a phone's connection, and their use of the registry."""
