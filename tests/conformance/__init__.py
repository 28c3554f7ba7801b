"""Clients of other makers against a running endpoint: `make conformance`. What came out is in docs/conformance.md."""
