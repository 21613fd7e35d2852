"""Certificates from an ACME CA."""
